"""What the tests share: a tiny model's folder, rows, the command line, and the place of the optional shared material."""

import json
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other

import numpy as np
import pytest

from builders import byte_tokenizer, tiny_model


@pytest.fixture(scope="session", autouse=True)
def _tokens_stay_here(tmp_path_factory):
    """Rendered tokens are kept in a folder of the test run, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and small real models beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A folder with a tiny random Llama, and a tokenizer of bytes with a chat template; about 0.1 MB."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama", vocab_size=260, bos_token_id=None, eos_token_id=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    """Forty Alpaca rows: three words to be said backwards."""
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "green", "cat", "dog", "sun", "moon", "tree"])
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    with file.open("w") as f:
        for _ in range(40):
            said = rng.choice(words, 3).tolist()
            f.write(json.dumps({"instruction": " ".join(said), "output": " ".join(said[::-1])}) + "\n")
    return file


@pytest.fixture
def tunesmith_cli(monkeypatch, capsys):
    """The command line in this process: call it with the arguments, get (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from tunesmith import cli

        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def refused(tunesmith_cli):
    """Run the command line, expect exit code 2, nothing on standard output and one line on standard error; return that line."""

    def call(*arguments: object) -> str:
        code, out, err = tunesmith_cli(*arguments)
        assert code == 2, (out, err)
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("tunesmith: ")
        return err.strip().removeprefix("tunesmith: ")

    return call

"""What these tests share: nothing may load a weight, and `rejected` trains on what it is given and returns the one sentence."""

from pathlib import Path

import pytest
import yaml

from tunesmith.model import loading

ROW = '{"instruction": "red cat", "output": "cat red"}'


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """Loading a weight fails the test; the working folder is empty but for what the test writes."""

    def load_model(*_, **__):
        raise AssertionError("weights were loaded before the input was found wrong")

    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rejected(refused, tiny_folder, tmp_path):
    """Train on what is given (data's content, a run file's content, flags); return the one sentence."""

    def call(content=ROW, name="data.jsonl", flags=(), folder=None, **run):
        if content is not None and not Path(name).exists():
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        command = ["train"]
        if run:
            Path("run.yaml").write_text(yaml.safe_dump(run))
            command.append("run.yaml")
        if "model" not in run:
            command += ["--model", folder or tiny_folder]
        if "data" not in run:
            command += ["--data", name]
        said = refused(*command, *flags)
        assert not list(tmp_path.glob("runs/*/result"))
        return said

    return call

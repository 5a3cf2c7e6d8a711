"""What happens before the first step: little is imported, broken data is said before that, and a second start is quick."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tunesmith import config
from tunesmith.data import cache
from tunesmith.errors import InputError
from tunesmith.training import prepare
from tunesmith.training.prepare import Prepared

HEAVY = (
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "torch._dynamo",
    "torch.distributed.tensor",
    "pandas",
    "pyarrow",
)


def imported(code: str) -> tuple[list[str], str]:
    """Run code in a process of its own; return which heavy modules it imported, and what it said."""
    code += f"\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *said, modules = done.stdout.strip().splitlines()
    return json.loads(modules.replace("'", '"')), "\n".join(said)


def rows(n: int) -> str:
    """n Alpaca rows of Alpaca's lengths: about 420 characters each, no two alike."""
    rng = np.random.default_rng(0)
    words = np.array(["river", "answer", "small", "the", "of", "number", "list", "because", "write", "seven", "a"])
    lines = []
    for i, (asked, answered) in enumerate(rng.lognormal([2.6, 3.7], [0.5, 0.8], (n, 2)).astype(int) + 1):
        instruction = f"{i}: " + " ".join(rng.choice(words, min(asked, 60)))
        lines.append(
            json.dumps(
                {"instruction": instruction, "input": "", "output": " ".join(rng.choice(words, min(answered, 400)))}
            )
        )
    return "\n".join(lines) + "\n"


@pytest.fixture
def given(tiny_folder, rows_file):
    """The checked configuration of a run that works, with other values laid over it."""

    def make(**changes):
        content = {"model": str(tiny_folder), "data": [str(rows_file)], "train": {"device": "cpu"}, **changes}
        return config.parse(content, "the run")

    return make


def test_importing_the_verb_imports_no_model_library():
    assert imported("import tunesmith.training.api")[0] == []


def test_data_that_is_not_there_is_said_before_a_reward_model_is_looked_at(tiny_folder, tmp_path):
    model, data, out = str(tiny_folder), str(tmp_path / "none.jsonl"), str(tmp_path / "o.jsonl")
    calls = (
        f"score({model!r}, data={data!r})",
        f"sample({model!r}, data={data!r}, reward={model!r}, output={out!r})",
        f"generate({model!r}, data={data!r}, reward={model!r}, best_of=2)",
    )
    for call in calls:
        modules, said = imported(f"import tunesmith\ntry: tunesmith.{call}\nexcept tunesmith.InputError as e: print(e)")
        assert modules == []
        assert "there is no data file" in said


def test_broken_rows_are_said_before_a_model_library_is_imported(tiny_folder, tmp_path):
    broken = {
        '{"instruction": "a", "outp': "row 3: line 3 is broken JSON",
        '{"instruction": "a", "output": null}': 'row 3: field "output" is null',
        '{"instruction": "a"}': 'row 3: field "output" is missing',
        '{"text": "a"}': "row 3: this row is of the format text",
        '{"instruction": "a", "output": "\\ud83d"}': "row 3: \\ud83d is half of a character",
    }
    files = [str(tmp_path / f"{i}.jsonl") for i in range(len(broken))]
    for file, row in zip(files, broken, strict=True):
        Path(file).write_text('{"instruction": "a", "output": "b"}\n' * 2 + row + "\n")
    unanswered = tmp_path / "unanswered.jsonl"
    unanswered.write_text('{"instruction": "a", "output": " "}\n' * 3)
    modules, said = imported(
        "import tunesmith\n"
        f"for file in {[*files, str(unanswered)]}:\n"
        "    try:\n"
        f"        tunesmith.train(model={str(tiny_folder)!r}, data=file, output={str(tmp_path / 'run')!r})\n"
        "    except tunesmith.InputError as e:\n"
        "        print(e)\n"
    )
    assert modules == []
    assert len(said.splitlines()) == len(broken) + 1
    *said_of_rows, unscored = said.splitlines()
    assert unscored.startswith("nothing would be scored: no row has an answer to train on (")
    for line, file, sentence in zip(said_of_rows, files, broken.values(), strict=True):
        assert line.startswith(f"{file}, {sentence}")
    assert not (tmp_path / "run").exists()


def test_a_broken_last_row_of_many_is_found_fast(given, tmp_path):
    file = tmp_path / "d.jsonl"
    row = json.dumps({"instruction": "say it again", "output": "word " * 80}) + "\n"
    file.write_text(row * 52_000 + '{"instruction"\n')
    before = time.process_time()
    with pytest.raises(InputError, match="row 52001: line 52001 is broken JSON"):
        Prepared(given(data=[str(file)]))
    assert time.process_time() - before < 5  # about 0.3 s


def test_the_model_is_built_without_memory_once(given, monkeypatch):
    built = []
    build = prepare.meta_model
    monkeypatch.setattr(prepare, "meta_model", lambda *a: (built.append(a), build(*a))[1])
    whole = Prepared(given(adapter="full"))
    assert len(built) == 1
    assert whole.shape.trained == whole.shape.parameters
    lora = Prepared(given(adapter={"name": "lora", "r": 2}))
    assert len(built) == 2
    # seven linear layers in each of two layers: 2 (in + out) numbers each, by hand from the tiny config
    d, f, kv = 32, 48, 16
    sizes = [(d, d), (d, kv), (d, kv), (d, d), (d, f), (d, f), (f, d)]
    assert lora.shape.trained == 2 * sum(2 * (i + o) for i, o in sizes)
    assert lora.shape.parameters == whole.shape.parameters


def test_a_continued_adapter_trains_what_its_file_holds(given, tiny_folder, tmp_path):
    from tunesmith.model.loading import ModelSource, load_model
    from tunesmith.training.prepare import attach

    adapted = attach(load_model(ModelSource(str(tiny_folder)), "float32"), {"name": "lora", "r": 3}).model
    adapted.save_pretrained(tmp_path / "adapter")
    expected = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert Prepared(given(adapter={"from": str(tmp_path / "adapter")})).shape.trained == expected


def test_a_second_start_renders_nothing(given, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_TOKENS", 0)
    first = Prepared(given())
    monkeypatch.setattr(cache, "render", None)
    second = Prepared(given())
    for a, b in ((first.examples, second.examples), (first.validation, second.validation)):
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.scored, b.scored)
    assert second.notices == first.notices
    assert second.config == first.config
    assert np.array_equal(second.rows(1), first.rows(1))


def test_a_damaged_entry_is_among_the_notices(given, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_TOKENS", 0)
    first = Prepared(given()).notices
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    said = Prepared(given()).notices
    damaged = [n for n in said if "damaged (its size is wrong): the data is rendered anew" in n]
    assert len(damaged) == 2  # training and validation rows
    # what is free now is told last, and may be another number
    assert [n for n in said if n not in damaged][:-1] == first[:-1]


@pytest.mark.slow
def test_the_second_start_of_52_000_rows_is_under_three_seconds(given, tmp_path, monkeypatch):
    """All of the start but the imports and the weights, on one core: rows, key, arrays, split, order of the steps, fingerprint."""
    from tunesmith.training.outcome import fingerprint

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "d.jsonl"
    file.write_text(rows(52_000))
    seconds = []
    for _ in range(2):
        before = time.process_time()
        prepared = Prepared(given(data=[str(file)], model="starter"))
        fingerprint(prepared.examples, prepared.rows(0))
        seconds.append(time.process_time() - before)
    assert len(prepared.train_records) == 51_500
    assert seconds[1] < 3
    assert seconds[1] < seconds[0] / 4

"""tunesmith.train: results that load elsewhere, runs that continue to the same bits, and what is refused on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tunesmith import run
from tunesmith.errors import InputError
from tunesmith.training import measure, stages

SETTINGS = ("train.dtype=float32", "train.batch_size=4", "train.max_steps=12", "train.checkpoint_every=3")


@pytest.fixture
def train(tiny_folder, rows_file, tmp_path):
    """tunesmith.train with the tiny model, the rows and a short schedule; `output` is under tmp_path."""

    def call(output="run", *settings, **arguments):
        given = {"model": str(tiny_folder), "data": str(rows_file), "output": str(tmp_path / output), **arguments}
        return tunesmith.train(settings=(*SETTINGS, *settings), **given)

    return call


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as e:
        call(*arguments, **keywords)
    assert "\n" not in str(e.value)
    return str(e.value)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "result").glob("*.safetensors")
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def policy_logits(folder: str, ids: torch.Tensor) -> torch.Tensor:
    from tunesmith.model.loading import load_model, resolve

    with torch.no_grad():
        return load_model(resolve(folder), "float32").eval()(ids).logits


# -- results


def test_a_full_run_gives_a_plain_transformers_folder(train, tmp_path, monkeypatch):
    """What the loop held at the end, transformers loads: the same logits, tokenizer and template, from any folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held = {}
    original = measure.after
    monkeypatch.setattr(measure, "after", lambda *a: (held.update(json.loads(json.dumps(a[3]))), original(*a)))
    result = train(adapter="full")
    assert result.keys() == {
        "run", "steps", "tokens", "scored_tokens", "seconds", "tokens_per_second", "train_loss", "metrics",
        "peak_memory_bytes", "result",
    }  # fmt: skip
    assert result["steps"] == 12
    checkpointed = load_file(tmp_path / "run" / "checkpoints" / "step-12" / "trained.safetensors")
    model = AutoModelForCausalLM.from_pretrained(result["result"])
    for name, p in model.named_parameters():
        assert torch.equal(p, checkpointed[f"model.{name}"]), name
    tokenizer = AutoTokenizer.from_pretrained(result["result"])
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer(text).input_ids])
    assert torch.equal(model(ids).logits, policy_logits(str(tmp_path / "run"), ids))
    assert held["steps"] == 12


def test_a_lora_run_loads_in_plain_peft_from_any_folder(train, tiny_folder, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tiny_folder.parent)
    result = train(adapter="lora", model=tiny_folder.name)  # a relative path, which must not travel with the adapter
    monkeypatch.chdir("/")
    tokenizer = AutoTokenizer.from_pretrained(result["result"])
    assert tokenizer.chat_template
    ids = torch.tensor([tokenizer("red green").input_ids])
    with torch.no_grad():
        plain = AutoPeftModelForCausalLM.from_pretrained(result["result"]).eval()(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        before = base(ids).logits
        attached = PeftModel.from_pretrained(base, result["result"]).eval()(ids).logits
    assert torch.equal(plain, attached)
    assert not torch.allclose(plain, before, atol=1e-3)
    assert torch.equal(plain, policy_logits(str(tmp_path / "run"), ids))
    # A and B are those of the last checkpoint
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-12" / "trained.safetensors")
    saved = weights(tmp_path / "run")
    assert len(saved) == len(kept) == 28
    for name, value in saved.items():
        assert torch.equal(value, kept["model." + name.replace(".weight", ".default.weight")]), name


def test_train_twice_in_one_process_is_the_same_twice(train, tmp_path):
    first, second = train("a"), train("b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert (first["tokens"], first["metrics"]) == (second["tokens"], second["metrics"])


# -- continuing an adapter


def test_a_lora_run_as_model_or_adapter_from_continues_that_adapter(train, tmp_path):
    train("one", adapter="lora")
    start = weights(tmp_path / "one")
    by_model = train("two", model=str(tmp_path / "one"))
    for name, config in (
        ("three", {"adapter": {"from": str(tmp_path / "one")}}),
        ("four", {"adapter": {"from": str(tmp_path / "one/result")}}),
    ):
        train(name, config=config, **({"model": None} if name == "four" else {}))
        assert same(weights(tmp_path / "two"), weights(tmp_path / name)), name
    assert weights(tmp_path / "two").keys() == start.keys()
    assert not same(weights(tmp_path / "two"), start)
    assert by_model["metrics"]["validation_loss"]["value"] < 10
    # the first step of the second run begins where the first ended
    events = [json.loads(line) for line in (tmp_path / "two" / "events.jsonl").read_text().splitlines()]
    began = next(e for e in events if e["event"] == "evaluate")["metrics"]
    ended = json.loads((tmp_path / "one" / "results.json").read_text())["after"]["metrics"]
    assert began["validation_loss"] == ended["validation_loss"]
    assert train("two", model=str(tmp_path / "one"), resume=True)["steps"] == 12


def test_a_second_adapter_on_an_adapter_is_refused(train, tiny_folder, tmp_path):
    train("one", adapter="lora")
    one = str(tmp_path / "one")
    for adapter in ("lora", "full"):
        assert "already is an adapter on" in refusal(train, "two", model=one, adapter=adapter)
    other = shutil.copytree(tmp_path / "one" / "result", tmp_path / "other")
    assert "names another" in refusal(train, "two", model=one, config={"adapter": {"from": str(other)}})
    said = refusal(train, "two", config={"adapter": {"from": str(tiny_folder)}})
    assert "holds a whole model, no adapter" in said
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    assert "does not fit the model" in refusal(train, "two", model=str(other))
    assert not (tmp_path / "two").exists()


# -- resuming


CHILD = """
import os, signal, sys
from tunesmith import cli
from tunesmith.training import progress
number = int(sys.argv.pop(1))
def listen(self, event):
    if event.get("event") == "step" and event["step"] == 7:
        os.kill(os.getpid(), number)
progress.Progress.__call__ = listen
sys.argv[0] = "tunesmith"
cli.main()
"""


@pytest.mark.parametrize("adapter", ["lora"])
def test_a_run_killed_by_any_signal_continues_to_the_same_bits(train, tiny_folder, rows_file, tmp_path, adapter):
    """SIGINT, SIGTERM and SIGKILL at step 7: exit 130, 143, -9; resumed, the weights equal an uninterrupted run's."""
    settings = [x for s in SETTINGS for x in ("--set", s)]
    common = ["--model", tiny_folder, "--data", rows_file, "--adapter", adapter, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    children = {
        number: subprocess.Popen(
            [sys.executable, "-c", CHILD, str(int(number)), "train", *common, "--output", tmp_path / number.name],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    }  # fmt: skip
    train("whole", adapter=adapter)
    wanted = weights(tmp_path / "whole")
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    for number, child in children.items():
        out, err = child.communicate(timeout=120)
        assert child.returncode == codes[number], err
        assert out == ""
        folder = tmp_path / number.name
        if number != signal.SIGKILL:
            assert err.strip().endswith("continue with --resume"), err
            assert run.state(folder) == "interrupted"
        assert not (folder / "result").exists()
        result = train(number.name, adapter=adapter, resume=True)
        assert result["steps"] == 12
        assert run.state(folder) == "done"
        assert same(weights(folder), wanted), number.name
        steps = [json.loads(x) for x in (folder / "events.jsonl").read_text().splitlines()]
        assert max(e["step"] for e in steps if e["event"] == "checkpoint") == 12
        began, resumed = (e["resumed_from"] for e in steps if e["event"] == "start")
        assert began is None
        assert resumed in (
            (3, 6) if number == signal.SIGKILL else (7,)
        )  # step 6 may still have been on its way to the disk


def test_resume_with_nothing_there_starts_and_of_a_finished_run_says_so(train, tmp_path):
    first = train(resume=True)
    heard = []
    again = train(resume=True, listeners=(heard.append,))
    assert again == first
    assert [e["message"] for e in heard] == [f"{tmp_path / 'run'} is finished: nothing is left to resume"]


def test_resume_refuses_a_changed_config_and_changed_data(train, rows_file, tmp_path, monkeypatch):
    data = shutil.copy(rows_file, tmp_path / "rows.jsonl")
    monkeypatch.setattr(measure, "after", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(data=str(data))
    monkeypatch.undo()
    assert run.state(tmp_path / "run") == "interrupted"
    said = refusal(train, "run", "optimizer.learning_rate=5e-3", data=str(data), resume=True)
    assert "was begun with optimizer.learning_rate = " in said
    assert "now it is 0.005" in said
    assert "objective.name = 'sft', now it is 'pretrain'" in refusal(
        train, data=str(data), objective="pretrain", resume=True
    )
    with data.open("a") as f:
        f.write(json.dumps({"instruction": "one more", "output": "row"}) + "\n")
    assert "has changed since step-12 was written" in refusal(train, data=str(data), resume=True)
    shutil.copy(rows_file, data)
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    assert tunesmith.train(str(moved / "run.yaml"), resume=True)["steps"] == 12
    assert run.state(moved) == "done"


def test_resume_refuses_a_folder_that_is_no_run(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    assert "holds no run to resume" in refusal(train, resume=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious.txt"]


# -- what is refused before weights load


def test_inputs_are_refused_before_weights_load(train, rows_file, tiny_folder, tmp_path, monkeypatch):
    from tunesmith.model import loading

    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "abc"}\n')
    bad = tmp_path / "rule.jsonl"
    bad.write_text(json.dumps({"instruction": "a", "output": "b", "check": {"kind": "nonsense"}}) + "\n")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    for words, settings, arguments in (
        ("reads chat. Train on plain text with --objective pretrain", (), {"data": str(text)}),
        ("text.jsonl holds text rows; the objective sft reads chat", (f"validation.path={text}",), {}),
        ("rule.jsonl, row 1:", (f"validation.path={bad}", "evaluate=[rule]"), {}),
        ("no row could be held out", ("evaluate=[perplexity]",), {"data": str(one)}),
        ("max_length 5: every one begins beyond it", ("train.max_length=5",), {}),
        ("beyond the model's context of 256 tokens", ("train.max_length=500",), {}),
        ("matches nothing in this model", ("adapter={name: lora, target_modules: [q]}",), {}),
        ("is a file; a run needs a folder", (), {"output": str(text)}),
        ("cannot be made", (), {"output": str(text / "run")}),
        ("is not empty and holds no run", (), {"output": str(tiny_folder)}),
        ('no objective "sftt"', (), {"objective": "sftt"}),
    ):
        output = arguments.pop("output", "run")
        assert words in refusal(train, output, *settings, **arguments)
        assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set" in refusal(train)


def test_a_model_that_does_not_fit_its_tokenizer_or_the_task_is_refused(train, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "they do not belong together" in refusal(train, model=str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "is none that writes text" in refusal(train, model=str(folder))


def test_a_folder_is_written_by_one_run_at_a_time(train, tmp_path):
    with run.open_run(tmp_path / "run"):
        assert "another process is writing" in refusal(train)
    train()
    assert "holds a run; continue it with --resume" in refusal(train)


def test_a_folder_that_was_used_while_the_run_was_prepared_is_refused(train, tmp_path, monkeypatch):
    """Another run came and went between the look at the folder and its lock."""

    def meanwhile(self):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.yaml").write_text("model: starter\n")

    monkeypatch.setattr(stages.Training, "_check_disk", meanwhile)
    assert "holds a run; continue it with --resume" in refusal(train)
    assert (tmp_path / "run" / "run.yaml").read_text() == "model: starter\n"
    assert run.state(tmp_path / "run") is None


def test_memory_that_runs_out_where_nothing_can_be_halved_is_one_sentence(train, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(measure, "validation_metrics", full)
    said = refusal(train)
    for remedy in ("adapter: lora", "train.activation_checkpointing: full", "train.max_length"):
        assert remedy in said
    assert run.state(tmp_path / "run") == "failed"


def test_nothing_is_validated_twice(train, tmp_path, monkeypatch):
    """At the start, at steps 6 and 12, and nowhere else; the best state, gone back to, is measured anew."""
    calls, measured = [], measure.validation_metrics
    monkeypatch.setattr(measure, "validation_metrics", lambda *a: calls.append(1) or measured(*a))
    settings = ("validation.fraction=0.2", "train.evaluate_every=6")
    result = train("run", *settings)
    assert len(calls) == 3
    found = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    told = {e["step"]: e["metrics"] for e in found if e["event"] == "evaluate"}
    kept = json.loads((tmp_path / "run" / "results.json").read_text())
    assert sorted(told) == [0, 6, 12]
    for step, metrics in ((0, kept["before"]["metrics"]), (12, result["metrics"])):
        assert {name: metrics[name] for name in told[step]} == told[step]


def test_our_own_defect_leaves_its_traceback_with_the_run(train, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(measure, "before", broken)
    with pytest.raises(ZeroDivisionError) as e:
        train()
    assert e.value.traceback_file == str(tmp_path / "run" / "traceback.txt")
    assert "ZeroDivisionError: ours" in (tmp_path / "run" / "traceback.txt").read_text()
    assert run.state(tmp_path / "run") == "failed"

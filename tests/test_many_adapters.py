"""Many adapters: a new one on an old one, and several on one model; through the verbs on a tiny model."""

import io
import json
from pathlib import Path

import pytest
import torch

import tunesmith
from adapter_folders import adapter, base, logits, plain_peft
from tunesmith import registry
from tunesmith.errors import InputError
from tunesmith.model import loading, many, stacking
from tunesmith.model.adapter_size import saved_bytes
from tunesmith.model.loading import load_model
from tunesmith.training.prepare import attach

QUICK = (
    "train.max_steps=3",
    "train.batch_size=4",
    "train.dtype=float32",
    "optimizer.learning_rate=0.01",
    "train.device=cpu",
)
QUICK += ("train.activation_checkpointing=none", "train.microbatch_tokens=512")


@pytest.fixture
def pair(tiny_folder, tmp_path):
    return [adapter(tiny_folder, tmp_path / name, seed) for seed, name in ((1, "one"), (2, "two"))]


def train(rows_file, output, **section):
    content = {"data": str(rows_file), "validation": False, "output": str(output), "adapter": section}
    return tunesmith.train(content, settings=QUICK)


@pytest.mark.parametrize("name", ["lora", "rslora", "pissa"])
def test_stacked_adapters_are_saved_as_one_plain_one(tiny_folder, pair, tmp_path, name):
    """The old one stays as it is and counts; the new one alone is trained; the folder gives both together in plain PEFT."""
    section = {"name": name, "r": 3, "target_modules": ["q_proj", "up_proj"]}
    model = stacking.stacked(attach(base(tiny_folder), section), pair[0]).model
    assert (logits(model) - logits(plain_peft(tiny_folder, pair[0]))).abs().max() < 1e-4  # a new one begins as nothing
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n and ".default." in n}
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n in trained:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    wanted = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir() if p.name != "README.md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    assert config["r"] == 4 + (6 if name == "pissa" else 3)
    assert (logits(plain_peft(tiny_folder, tmp_path / "saved")) - wanted).abs().max() < 1e-4
    assert (logits(plain_peft(tiny_folder, pair[0])) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("how", ["stack", "merge"])
def test_a_run_on_an_adapter(tiny_folder, rows_file, pair, tmp_path, how, tunesmith_cli):
    """The result loads in plain PEFT on the base that it names and in tunesmith, with the same logits, as does a resumed run's."""
    result = train(rows_file, tmp_path / "run", name="lora", r=2, on=pair[0], how=how)["result"]
    config = json.loads((Path(result) / "adapter_config.json").read_text())
    assert config["r"] == (6 if how == "stack" else 2)
    assert Path(config["base_model_name_or_path"]) == (tiny_folder if how == "stack" else tmp_path / "run/base")
    found = logits(plain_peft(config["base_model_name_or_path"], result))
    assert torch.equal(found, logits(load_model(loading.resolve(str(tmp_path / "run")))))
    before = logits(plain_peft(tiny_folder, pair[0]))
    assert (found - before).abs().max() > 1e-3
    assert (found - before).abs().mean() < (
        logits(base(tiny_folder)) - before
    ).abs().mean()  # three small steps from it
    if how == "merge":
        assert (logits(base(tmp_path / "run/base")) - before).abs().max() < 1e-4
        assert (tmp_path / "run/base/tokenizer.json").is_file()
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    start = next(e for e in events if e["event"] == "start")
    assert (start["adapter"], start["adapter_on"], start["adapter_how"]) == ("lora", pair[0], how)
    code, out, err = tunesmith_cli("train", tmp_path / "run/run.yaml", "--resume", "--json")
    assert (code, json.loads(out)["result"]) == (0, result), err


def test_merged_first_and_trained_whole_needs_no_base_beside(rows_file, pair, tmp_path):
    result = train(rows_file, tmp_path / "run", name="full", on=pair[0], how="merge")["result"]
    assert (Path(result) / "model.safetensors").is_file()
    assert not (tmp_path / "run/base").exists()


def test_the_key_on_is_no_truth_value(tmp_path, pair, rows_file, refused):
    """YAML 1.1 reads a bare `on` as true."""
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {rows_file}\nadapter: {{name: lora, on: {pair[0]}, how: stak}}\n")
    assert "adapter.how should be one of stack, merge, found 'stak'. Did you mean \"stack\"?" in refused("train", file)
    said = refused("train", "--data", rows_file, "--set", f"adapter={{name: lora, on: {tmp_path / 'on'}}}")
    assert f"there is no adapter's folder {tmp_path / 'on'}" in said


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "lora", "how": "stack"}, "name its folder as adapter.on"),
        ({"name": "lora", "on": 3}, "adapter.on should be an adapter's or a run's folder, found 3"),
        ({"name": "ia3", "on": "{one}"}, "stack needs a new adapter of LoRA's own kind"),
        ({"name": "dora", "on": "{one}"}, "stack needs a new adapter of LoRA's own kind"),
        ({"name": "full", "on": "{one}"}, "stack needs a new adapter of LoRA's own kind"),
        (
            {"name": "lora", "on": "{prompt}"},
            "is an adapter of the kind PROMPT_TUNING, and only LoRA ones can be added up",
        ),
        ({"name": "lora", "on": "{prompt}", "how": "merge"}, "it is virtual tokens before the text"),
        ({"name": "lora", "on": "{dora}"}, "is a LoRA adapter with use_dora"),
        ({"name": "lora", "on": "{model}"}, "holds a whole model, no adapter"),
        ({"name": "lora", "r": 9999, "on": "{one}"}, "r should be less than or equal to 8192, found 9999"),
    ],
)
def test_what_cannot_be_put_on_another_is_refused_before_the_folder_is_made(
    tiny_folder, rows_file, tmp_path, section, words
):
    adapter(tiny_folder, tmp_path / "one", 1)
    adapter(tiny_folder, tmp_path / "dora", 1, use_dora=True)
    adapter(tiny_folder, tmp_path / "prompt", 1, "prompt", num_virtual_tokens=3)
    places = {"one": tmp_path / "one", "prompt": tmp_path / "prompt", "dora": tmp_path / "dora", "model": tiny_folder}
    section = {k: v.format(**places) if isinstance(v, str) else v for k, v in section.items()}
    with pytest.raises(InputError, match=words):
        train(rows_file, tmp_path / "run", **section)
    assert not (tmp_path / "run").exists()


def test_the_size_told_is_the_file_s(tiny_folder, pair, tmp_path):
    """But for the header of the file."""
    alone = [(name, None) for name in ("lora", "dora", "pissa", "ia3", "bottleneck")]
    for name, below in (*alone, ("lora", pair[0]), ("pissa", pair[0])):
        attached = attach(base(tiny_folder), {"name": name})
        if below:
            attached = stacking.stacked(attached, below)
        told = saved_bytes(attached.model, getattr(registry.load("model.adapters", name), "SAVED", 1))
        attached.model.save_pretrained(tmp_path / "saved")
        file = tmp_path / "saved/adapter_model.safetensors"
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert told == file.stat().st_size - header, name
    assert saved_bytes(base(tiny_folder)) is None


def test_names_come_from_folders_or_are_given(tmp_path):
    (tmp_path / "a=b").mkdir()
    given = ["x/one", "runs/two/result", "three=x/one", str(tmp_path / "a=b"), "none"]
    assert list(many.named(given).items()) == [
        ("one", "x/one"), ("two", "runs/two/result"), ("three", "x/one"), ("a=b", str(tmp_path / "a=b")), ("none", None),
    ]  # fmt: skip
    assert many.named(None) == {}
    assert many.named("x/one") == {"one": "x/one"}
    for wrong, words in (
        (["x/one", "y/one"], 'two adapters are named "one", x/one and y/one; name one, as in one2=y/one'),
        (["=x"], 'by its folder, or as NAME=DIR; found "=x"'),
        (["x="], 'by its folder, or as NAME=DIR; found "x="'),
        (["none=x"], "give x another name"),
    ):
        with pytest.raises(InputError, match=words):
            many.named(wrong)


def test_each_adapter_answers_as_it_does_alone(tiny_folder, pair, tmp_path):
    """One after the other on one model, and the model without; dots in names are people's own."""
    given = [f"v1.5={pair[0]}", pair[1], "none"]
    several = many.check_several(str(tiny_folder), many.named(given), "cpu")
    model = several.load()
    wanted = {
        "v1.5": plain_peft(tiny_folder, pair[0]),
        "two": plain_peft(tiny_folder, pair[1]),
        "none": base(tiny_folder),
    }
    assert list(several.choices) == list(wanted)
    for name in ("two", "none", "v1.5", "two"):
        with several.using(model, name):
            assert torch.equal(logits(model), logits(wanted[name]))
    assert not any(p.requires_grad for p in model.parameters())


def test_generate_by_several_and_by_one(tiny_folder, pair):
    model, given = str(tiny_folder), {"prompt": "red", "max_new_tokens": 8, "device": "cpu"}
    alone = [tunesmith.generate(model, adapter=a, **given)["answers"] for a in (None, *pair)]
    assert all(set(a) == {"prompt", "answer"} for answers in alone for a in answers)
    together = tunesmith.generate(model, adapter=["none", *pair], **given)["answers"]
    assert [a["adapter"] for a in together] == ["none", "one", "two"]
    assert [a["answer"] for a in together] == [answers[0]["answer"] for answers in alone]
    assert len({a["answer"] for a in together}) == 3
    assert tunesmith.generate(pair[0], **given)["answers"] == alone[1]


def test_generate_prints_who_answers(tunesmith_cli, tiny_folder, pair):
    arguments = ["generate", tiny_folder, "--adapter", pair[0], "--adapter", f"b={pair[1]}", "--prompt", "red"]
    code, out, err = tunesmith_cli(*arguments, "--max-new-tokens", "4")
    assert code == 0, err
    assert out.startswith("[one] ")
    assert "\n\n[b] " in out


def test_chat_switches(tiny_folder, pair):
    from tunesmith.chat import chat

    alone = [
        tunesmith.generate(str(tiny_folder), adapter=a, prompt="red", max_new_tokens=6)["answers"]
        for a in (*pair, None)
    ]
    lines = ["red", "/reset", "/adapter two", "red", "/reset", "/adapter none", "red", "/adapter twoo", "/adapter"]
    out = io.StringIO()
    chat(str(tiny_folder), pair, stdin=io.StringIO("\n".join(lines)), stdout=out, max_new_tokens=6)
    shown = out.getvalue()
    parts = [shown.split("The conversation is forgotten")[0], *shown.split(" now.\n")[1:]]
    for part, (answer,) in zip(parts, alone, strict=True):
        assert "".join(c for c in answer["answer"].strip() if c.isprintable()) in part
    assert "The adapter two answers now." in shown
    assert 'there is no adapter named "twoo". Did you mean "two"?' in shown
    assert shown.endswith("  one\n  two\n* none\n")


def test_kinds_that_one_model_cannot_hold(tiny_folder, pair, tmp_path, refused):
    other = adapter(tiny_folder, tmp_path / "ia3", 3, "ia3")
    said = refused("generate", tiny_folder, "--adapter", pair[0], "--adapter", other, "--prompt", "x")
    assert (
        said
        == f"{pair[0]} is an adapter of the kind LORA and {other} of IA3, which one model cannot hold together; use them one at a time."
    )
    prompts = [adapter(tiny_folder, tmp_path / f"p{s}", s, "prompt", num_virtual_tokens=3) for s in (1, 2)]
    found = tunesmith.generate(str(tiny_folder), adapter=prompts, prompt="red", max_new_tokens=8)["answers"]
    alone = [
        tunesmith.generate(str(tiny_folder), adapter=p, prompt="red", max_new_tokens=8)["answers"][0] for p in prompts
    ]
    assert [a["answer"] for a in found] == [a["answer"] for a in alone]


def test_evaluate_takes_one_adapter(refused, tiny_folder, rows_file, pair):
    said = refused("evaluate", tiny_folder, "--data", rows_file, "--adapter", pair[0], "--adapter", pair[1])
    assert said == "evaluate measures one adapter at a time, found 2; run it once for each."

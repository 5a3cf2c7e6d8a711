"""The verb merge: its report, what it refuses, and adapters merged into their base; on a tiny model."""

import json
from pathlib import Path

import pytest

import tunesmith
from adapter_folders import adapter, base, logits, plain_peft
from tunesmith.errors import InputError


@pytest.fixture
def pair(tiny_folder, tmp_path):
    return [adapter(tiny_folder, tmp_path / name, seed) for seed, name in ((1, "one"), (2, "two"))]


def test_merge_measures_base_parts_and_merge(tunesmith_cli, tiny_folder, rows_file, pair, tmp_path):
    """Each number is what `evaluate` says of that model alone; the folder is plain PEFT's and names what it was made of."""
    out_folder = tmp_path / "merged"
    arguments = ["merge", *pair, "--weights", "0.7,0.3", "--data", rows_file, "--output", out_folder]
    code, out, err = tunesmith_cli(*arguments, "--metric", "exact_match", "--limit", "10", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((out_folder / "merge.json").read_text())
    assert list(report["metrics"]) == ["base", "one", "two", "merged"]
    evaluated = tunesmith.evaluate(str(out_folder), data=str(rows_file), metrics=["perplexity"], limit=10)["metrics"]
    assert report["metrics"]["merged"]["perplexity"] == pytest.approx(evaluated["perplexity"])
    evaluated = tunesmith.evaluate(str(tiny_folder), data=str(rows_file), metrics=["perplexity"], limit=10)["metrics"]
    assert report["metrics"]["base"]["perplexity"] == pytest.approx(evaluated["perplexity"])
    assert {"validation_loss", "perplexity", "exact_match"} <= set(report["metrics"]["two"])
    assert report["recipe"]["method"] == "cat"
    assert [part["name"] for part in report["recipe"]["parts"]] == ["one", "two"]
    assert len({part["sha256"] for part in report["recipe"]["parts"]}) == 2
    assert report["deltas"]["distance_to_weighted_sum"] < 1e-5 * report["deltas"]["norm"]
    model = plain_peft(tiny_folder, pair[0])
    model.load_adapter(pair[1], adapter_name="two")
    model.add_weighted_adapter(["default", "two"], [0.7, 0.3], "sum", combination_type="cat")
    model.set_adapter("sum")
    assert (logits(plain_peft(tiny_folder, out_folder)) - logits(model)).abs().max() < 1e-5
    again = tunesmith.merge(pair, weights=[0.7, 0.3], output=str(tmp_path / "again"))
    assert again["metrics"] is None
    files = [f / "adapter_model.safetensors" for f in (out_folder, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_merge_shows_a_table(tunesmith_cli, rows_file, pair, tmp_path):
    arguments = ["merge", *pair, "--method", "linear", "--data", rows_file, "--limit", "4", "--output", tmp_path / "m"]
    code, out, err = tunesmith_cli(*arguments)
    assert code == 0, err
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == "adapter weight size of change cosine to merged distance to merged"
    assert lines[1].startswith("one ")
    assert "linear, rank 4: " in out
    assert "of its size away from the weighted sum" in out
    assert lines[-1] == f"result  {tmp_path / 'm'}"
    assert all(len(line) <= 80 for line in lines[:-1])


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_into_base_gives_the_adapter_s_logits(tunesmith_cli, tiny_folder, tmp_path, kind):
    own = {"use_dora": True} if kind == "dora" else {}
    folder = adapter(tiny_folder, tmp_path / "one", 1, "ia3" if kind == "ia3" else "lora", **own)
    code, out, err = tunesmith_cli("merge", folder, "--into-base", "--output", tmp_path / "whole", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["dtype"], report["difference"] < 1e-4) == ("float32", True)
    assert report["bytes"] == (tmp_path / "whole/model.safetensors").stat().st_size
    assert (logits(base(tmp_path / "whole")) - logits(plain_peft(tiny_folder, folder))).abs().max() < 1e-4
    code, out, _ = tunesmith_cli("generate", tmp_path / "whole", "--prompt", "red", "--max-new-tokens", "2")
    assert code == 0


def test_into_base_that_changes_logits_writes_nothing(tiny_folder, pair, tmp_path, monkeypatch):
    from tunesmith.model import into_base

    monkeypatch.setattr(into_base, "merge", lambda model, adapter: model.unload())
    with pytest.raises(InputError, match=r"gives other logits, by .* where 0\.0001 is rounding; nothing was written"):
        tunesmith.merge(pair[0], into_base=True, output=str(tmp_path / "whole"))
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{one}"], "one adapter alone is nothing to merge"),
        (["{one}", "{two}", "--weights", "1"], "--weights has 1 of 2"),
        (
            ["{one}", "{two}", "--weights", "1,x"],
            '--weights takes numbers with commas between them, as 0.7,0.3; found "1,x"',
        ),
        (["{one}", "{two}", "--weights", "1,0"], "--weights 1,0: each must be a finite number and not 0"),
        (["{one}", "{two}", "--weights", "1,nan"], "each must be a finite number"),
        (["{one}", "{two}", "--method", "linar"], 'no way to merge named "linar". Did you mean "linear"?'),
        (["{one}", "{two}", "--method", "cat", "--rank", "4"], "--rank goes with svd"),
        (["{one}", "{two}", "--rank", "0"], "--rank is 0; it must be at least 1"),
        (["{one}", "{two}", "--rank", "100"], "--rank 100 is above that of the narrowest layer, 32"),
        (["{one}", "{two}", "--density", "0.5"], "--density goes with ties, dare and magnitude_prune; cat keeps all"),
        (
            ["{one}", "{two}", "--method", "ties", "--density", "1.5"],
            "--density is 1.5; it must be above 0 and at most 1",
        ),
        (["{one}", "{two}", "--metric", "exact_match"], "--metric and --limit say how to measure on --data"),
        (["{one}", "{two}", "--data", "rowz.jsonl"], "there is no data file rowz.jsonl"),
        (["{one}", "{one}"], "the adapter {one} is given twice; once is enough"),
        (["a={one}", "a={two}"], 'two adapters are named "a", {one} and {two}; name one, as in a2={two}'),
        (["{one}", "base={two}"], '"base" is no name for an adapter here'),
        (["{one}", "{model}"], "holds a whole model, no adapter; merge takes adapters"),
        (["{one}", "{tmp}/nowhere"], "there is no adapter's folder {tmp}/nowhere"),
        (["{one}", "nowhere"], "there is no adapter's folder nowhere"),
        (["{one}", "{ia3}"], "is an adapter of the kind IA3, and only LoRA ones can be added up"),
        (
            ["{one}", "{other}"],
            "are adapters of different models, {model} and {model2}; if these are one model in two places",
        ),
        (["{one}", "{two}", "--into-base"], "--into-base takes one adapter, found 2"),
        (["{one}", "--into-base", "--method", "svd"], "leave --method out"),
        (["{one}", "--into-base", "--seed", "0"], "leave --seed out"),
        (["{one}", "{two}", "--method", "ties", "--seed", "4"], "--seed draws what dare keeps; ties draws nothing"),
        (["{prompt}", "--into-base"], "it is virtual tokens before the text, no change of weights; use the model with"),
        (["{one}", "{two}", "--output", "{one}"], "is there already; choose another --output"),
    ],
)
def test_wrong_merges_are_one_sentence(refused, tiny_folder, tmp_path, arguments, words):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "model2")
    places = {"tmp": tmp_path, "model": tiny_folder, "model2": tmp_path / "model2"}
    for seed, name in enumerate(("one", "two")):
        places[name] = adapter(tiny_folder, tmp_path / name, seed)
    places["other"] = adapter(tmp_path / "model2", tmp_path / "other", 3)
    places["ia3"] = adapter(tiny_folder, tmp_path / "ia3", 4, "ia3")
    places["prompt"] = adapter(tiny_folder, tmp_path / "prompt", 5, "prompt", num_virtual_tokens=2)
    output = [] if "--output" in arguments else ["--output", tmp_path / "out"]
    assert words.format(**places) in refused("merge", *(a.format(**places) for a in arguments), *output)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


def test_wrong_merges_from_python_are_one_sentence_too(pair, tmp_path):
    out = tmp_path / "out"
    for adapters, given, words in [
        ([], {}, "there is nothing to merge"),
        (pair, {"weights": "0.5,0.5"}, "should be a list of numbers, one for each adapter; found '0.5,0.5'"),
        (pair, {"weights": ["x", 1]}, "should be a list of numbers"),
        (pair, {"data": "rows.jsonl", "limit": 0}, "limit is 0; it must be at least 1"),
    ]:
        with pytest.raises(tunesmith.InputError, match=words):
            tunesmith.merge(adapters, output=out, **given)
    assert not out.exists()
    assert tunesmith.merge([Path(folder) for folder in pair], output=out)["output"] == str(out)


def test_an_adapter_is_not_merged_for_a_base_it_does_not_fit(refused, tiny_folder, pair, tmp_path):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "wider")
    config = json.loads((tmp_path / "wider/config.json").read_text())
    (tmp_path / "wider/config.json").write_text(json.dumps(config | {"vocab_size": 200, "num_hidden_layers": 1}))
    said = refused("merge", *pair, "--model", tmp_path / "wider", "--output", tmp_path / "out")
    assert f"the adapter {pair[0]} does not fit the model {tmp_path / 'wider'}" in said
    assert not (tmp_path / "out").exists()


def test_the_same_base_in_two_places_is_named_once(tiny_folder, tmp_path):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "moved")
    one, two = adapter(tiny_folder, tmp_path / "one", 1), adapter(tmp_path / "moved", tmp_path / "two", 2)
    report = tunesmith.merge([one, two], model=str(tiny_folder), output=str(tmp_path / "out"))
    assert report["recipe"]["base"] == str(tiny_folder)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)

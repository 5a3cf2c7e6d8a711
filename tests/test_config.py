"""The run file: every wrong key, type and combination is refused in a sentence that names it; the right ones are converted."""

from types import SimpleNamespace

import pytest

from tunesmith import registry
from tunesmith.config import parse
from tunesmith.data.mixing import Mixing
from tunesmith.errors import InputError
from tunesmith.run_file import assign, load_file

DATA = {"data": "rows.jsonl"}


def wrong(content: dict) -> str:
    with pytest.raises(InputError) as e:
        parse({**DATA, **content}, "run.yaml")
    return str(e.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"modell": "x"}, 'run.yaml: unknown key "modell". Did you mean "model"?'),
        ({"model": {"pth": "x"}}, 'run.yaml: unknown key "model.pth". Did you mean "path"?'),
        ({"data": {"path": "x", "wieght": 3}}, 'run.yaml: data has the unknown key "wieght". Did you mean "weight"?'),
        ({"validation": {"fracton": 0.1}}, 'run.yaml: validation: unknown key "fracton". Did you mean "fraction"?'),
        ({"objective": {"name": "sft", "beta": 1}}, 'run.yaml: objective: unknown key "beta".'),
        ({"adapter": {"name": "lora", "rr": 1}}, 'run.yaml: adapter: unknown key "rr". Did you mean "r"?'),
        (
            {"optimizer": {"learning_rat": 1}},
            'run.yaml: optimizer: unknown key "learning_rat". Did you mean "learning_rate"?',
        ),
        ({"train": {"epoch": 3}}, 'run.yaml: unknown key "train.epoch". Did you mean "epochs"?'),
        ({"evaluate": [{"name": "perplexity", "foo": 1}]}, 'run.yaml: evaluate[0]: unknown key "foo".'),
        ({"mixing": {"temperatur": 2}}, 'run.yaml: mixing: unknown key "temperatur". Did you mean "temperature"?'),
        ({"data": {"path": "x", "capp": 3}}, 'run.yaml: data has the unknown key "capp". Did you mean "cap"?'),
        ({1: 2}, 'run.yaml: unknown key "1".'),
    ],
)
def test_an_unknown_key_is_refused_at_every_level(content, sentence):
    assert wrong(content).startswith(sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"train": {"epochs": "three"}}, "train.epochs should be a number, found 'three'."),
        ({"train": {"epochs": True}}, "train.epochs should be a number, found true."),
        ({"train": {"epochs": float("inf")}}, "train.epochs should be a finite number, found inf."),
        ({"train": {"max_steps": 2.5}}, "train.max_steps should be a whole number, found 2.5."),
        ({"train": {"max_steps": True}}, "train.max_steps should be a number, found true."),
        ({"train": {"seed": -1}}, "train.seed should be greater than or equal to 0, found -1."),
        ({"train": []}, "train should be a mapping of keys, found []."),
        ({"data": 3}, "data should be a list, found 3."),
        ({"data": [3]}, "data[0] should be a mapping of keys, found 3."),
        ({"validation": 3}, "validation should be a mapping of keys, found 3."),
        ({"validation": {"fraction": 2}}, "validation: fraction should be less than 1, found 2."),
        ({"adapter": {"name": "lora", "r": True}}, "adapter: r should be a number, found true."),
        ({"adapter": {"from": 3}}, "adapter.from should be an adapter's or a run's folder, found 3."),
        ({"optimizer": {"learning_rate": True}}, "optimizer: learning_rate should be a number, found true."),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            "optimizer: learning_rate should be a finite number, found nan.",
        ),
        ({"optimizer": {"learning_rate": 0}}, "optimizer: learning_rate should be greater than 0, found 0."),
        ({"optimizer": {"betas": 3}}, "optimizer: betas should be a list, found 3."),
        ({"output": 3}, "output should be text, found 3."),
        ({"evaluate": [{"n": 3}]}, "evaluate[0] needs a name, one of exact_match, perplexity, rule."),
        ({"adapter": {"r": 3}}, f"adapter needs a name, one of {', '.join(registry.names('model.adapters'))}."),
        ({"mixing": 3}, "mixing should be a mapping of keys, found 3."),
        ({"mixing": {"temperature": 0.5}}, "mixing: temperature should be greater than or equal to 1, found 0.5."),
        ({"mixing": {"temperature": True}}, "mixing: temperature should be a number, found true."),
        ({"mixing": {"general_share": 1}}, "mixing: general_share should be less than 1, found 1."),
        ({"mixing": {"curriculum": "size"}}, "mixing: curriculum should be one of length, score, found 'size'."),
        ({"mixing": {"score_field": 3}}, "mixing: score_field should be text, found 3."),
        ({"mixing": {"easiest": "first"}}, "mixing: easiest should be one of lowest, highest, found 'first'."),
        ({"data": {"path": "x", "cap": 0}}, 'data (x): "cap" is 0, expected a whole number of rows above 0.'),
        ({"data": {"path": "x", "cap": True}}, 'data (x): "cap" is True, expected a whole number of rows above 0.'),
        ({"data": {"path": "x", "cap": 2.5}}, 'data (x): "cap" is 2.5, expected a whole number of rows above 0.'),
        ({"data": {"path": "x", "general": "yes"}}, "data (x): \"general\" is 'yes', expected true or false."),
        ({"prepare": 3}, "prepare should be a mapping of keys, found 3."),
    ],
)
def test_a_wrong_type_is_refused(content, sentence):
    assert wrong(content) == f"run.yaml: {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"objective": "sftt"}, 'objective.name: there is no objective "sftt". Did you mean "sft"?'),
        (
            {"data": {"path": "x", "objective": "sftt"}},
            'data (x): there is no objective "sftt". Did you mean "sft"?',
        ),
        (
            {"data": {"path": "x", "objective": ["sft"]}},
            'data (x): there is no objective "[\'sft\']". Did you mean "sft"?',
        ),
        ({"adapter": "loraa"}, 'adapter.name: there is no adapter "loraa". Did you mean "lora"?'),
        ({"optimizer": "adam"}, 'optimizer.name: there is no optimizer "adam". Did you mean "adamw"?'),
        ({"evaluate": ["perplexty"]}, 'evaluate[0].name: there is no metric "perplexty". Did you mean "perplexity"?'),
        ({"data": {"path": "x", "format": "alpaka"}}, 'data (x): there is no format "alpaka". Did you mean "alpaca"?'),
        (
            {"train": {"schedule": "cosin"}},
            'train.schedule: there is no schedule "cosin". Did you mean "cosine"?',
        ),
        ({"train": {"device": "gpu"}}, "train.device should be one of cpu, cuda, mps, found 'gpu'."),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_spelling(content, sentence):
    assert wrong(content) == f"run.yaml: {sentence}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": {"batch_size": 2, "tokens_per_step": 64}}, "exclude each other"),
        ({"train": {"epochs": 1, "max_steps": 3}}, "exclude each other"),
        ({"train": {"early_stopping": 2}, "validation": False}, "early_stopping watches the validation loss"),
        ({"evaluate": ["rule"], "validation": False}, "evaluate measures on the validation rows"),
        ({"adapter": {"from": "x", "r": 4}}, "continues an adapter as it is; take adapter.r away"),
        ({"train": {"activation_offload": "maybe"}}, "train.activation_offload should be true or false, found 'maybe'"),
        ({"validation": {"path": "x", "fraction": 0.1}}, "keep one"),
        ({"validation": {"format": "text"}}, "validation.format needs validation.path"),
        ({"mixing": {"temperature": 2}}, "mixing.temperature mixes sets, but data names 1"),
        (
            {"data": ["a", {"path": "b", "weight": 2}], "mixing": {"temperature": 2}},
            "mixing.temperature and data[1].weight both say how often rows come; keep one.",
        ),
        ({"data": ["a", {"path": "b", "general": True}]}, "data[1] is marked general; say with mixing.general_share"),
        ({"mixing": {"general_share": 0.1}}, "mixing.general_share needs a set of general data"),
        ({"mixing": {"curriculum": "score"}}, "mixing.curriculum: score needs mixing.score_field"),
    ],
)
def test_an_impossible_combination_is_refused(content, words):
    assert words in wrong(content)


def test_what_is_right_is_converted():
    """Text that is a number passes for one (YAML reads 2e-4 as text); a lone name or path stands for its section."""
    run = parse(
        {
            "model": "tiny",
            "data": ["a.jsonl", {"path": "b.jsonl", "weight": 3}],
            "validation": "held-out.jsonl",
            "optimizer": {"learning_rate": "2e-4", "betas": [0.9, 0.95]},
            "adapter": {"name": "lora", "r": "8"},
            "train": {"epochs": "3", "warmup": "1e-1"},
            "evaluate": "perplexity",
        }
    )
    assert run.model.path == "tiny"
    assert run.data == [{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 3}]
    assert run.validation == {"path": "held-out.jsonl"}
    assert run.optimizer == {"name": "adamw", "learning_rate": 2e-4, "betas": (0.9, 0.95)}
    assert run.adapter == {"name": "lora", "r": 8}
    assert (run.train.epochs, run.train.warmup) == (3.0, 0.1)
    assert run.evaluate == [{"name": "perplexity"}]


def test_set_reaches_every_key():
    content = {"model": "tiny", "train": {"epochs": 1}}
    for setting in ("model.path=other", "train.epochs=2", "adapter.name=lora", "adapter.r=4", "evaluate=[rule]"):
        assign(content, setting)
    assert content == {
        "model": {"path": "other"},
        "train": {"epochs": 2},
        "adapter": {"name": "lora", "r": 4},
        "evaluate": ["rule"],
    }


@pytest.mark.parametrize(
    "setting", ["train", "=3", "train.epochs=[", "train.epochs=!!python/name:os.system", "data.path=x"]
)
def test_set_misused_is_refused(setting):
    with pytest.raises(InputError, match="--set"):
        assign({"data": ["a"]}, setting)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "not a list"),
        ("just text", "not text"),
        ("", "not empty"),
        ("a: [", "line 1: this is no YAML"),
        ("a: 1\n\tb: 2", "line 2: this is no YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("\x00", "this is no YAML"),
    ],
)
def test_a_file_that_is_no_run_file_is_refused(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"run\.yaml") as e:
        load_file(str(file))
    assert words in str(e.value)


def test_a_missing_run_file_names_the_nearest(tmp_path):
    (tmp_path / "support.yaml").write_text("model: starter")
    with pytest.raises(InputError, match=r'Did you mean "support\.yaml"'):
        load_file(str(tmp_path / "suport.yaml"))


def test_mixing_is_converted_and_prepare_may_be_true():
    run = parse({**DATA, "mixing": {"curriculum": "score", "score_field": "hard"}, "prepare": True})
    assert run.mixed() == Mixing(curriculum="score", score_field="hard")
    assert parse(DATA).mixed() == Mixing()
    assert run.prepare == {}
    assert parse({**DATA, "prepare": False}).prepare is None


def test_a_set_may_have_an_objective_of_the_same_loss_only(monkeypatch):
    assert parse({"data": [{"path": "x", "objective": "pretrain"}]}).data[0]["objective"] == "pretrain"

    def squared(logps, weights):
        return (logps**2 * weights).sum()

    load = registry.load
    monkeypatch.setattr(registry, "load", lambda p, n: SimpleNamespace(loss=squared) if n == "pretrain" else load(p, n))
    assert "data[0].objective pretrain and the run's sft have different losses" in wrong(
        {"data": [{"path": "x", "objective": "pretrain"}]}
    )

"""The verb `score` against transformers' own scores, and what it says of rows it cannot score."""

import json

import numpy as np
import pytest
import torch
from letter_models import save_reward
from transformers import AutoModelForSequenceClassification

import tunesmith
from builders import byte_tokenizer
from tunesmith.data.sources import load
from tunesmith.errors import InputError

PAIR = {"prompt": "go on", "chosen": "xx", "rejected": "xaaa", "category": "short"}
VERDICTS = [{"prompt": "go", "completion": "x" * n, "label": n > 3} for n in range(1, 7)]


def by_transformers(folder, messages):
    """Return transformers' own score of a conversation as the template writes it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    text = byte_tokenizer().apply_chat_template(messages, tokenize=False)
    ids = torch.tensor([byte_tokenizer()(text).input_ids])
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def talk(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_scores_are_transformers_own(reward, rows, tmp_path):
    chat = {"messages": [*talk("a", "b"), *talk("c", "xyz"), {"role": "user", "content": "not answered"}]}
    sets = {
        "pairs": ([PAIR], [[talk("go on", "xx"), talk("go on", "xaaa")]]),
        "verdicts": (VERDICTS, [[talk("go", row["completion"])] for row in VERDICTS]),
        "chats": ([chat], [[chat["messages"][:4]]]),  # up to the last answer
        "prompts": ([{"prompt": "how", "ground_truth": "so"}], [[talk("how", "so")]]),
    }
    data = [rows(*given, name=f"{name}.jsonl") for name, (given, _) in sets.items()]
    wanted = [[by_transformers(reward, m) for m in own] for _, read in sets.values() for own in read]
    told = []
    for file in data:
        out = file.replace(".jsonl", "-scored.jsonl")
        tunesmith.score(reward, data=file, output=out)
        told += [record.extra["scored"] for record in load(out).records]
    for one, values in zip(told, wanted, strict=True):
        assert one["scores"] == pytest.approx(values, abs=1e-5)
    assert told[0] == {"reward": reward, "from": f"{data[0]}, row 1", "scores": told[0]["scores"]}
    found = tunesmith.score(reward, data=data)
    assert (found["rows"], found["answers"]) == (9, 10)
    metrics = found["metrics"]
    assert metrics["score"]["value"] == pytest.approx(np.mean([s for values in wanted for s in values]), abs=1e-5)
    assert metrics["preference_accuracy"]["value"] == metrics["preference_accuracy/short"]["value"] == 1
    assert metrics["verdict_auc"]["value"] == 1
    with pytest.raises(InputError, match="a file holds rows of one kind, and the data has chat and preference"):
        tunesmith.score(reward, data=data, output=str(tmp_path / "o.jsonl"))


def test_the_command_line(reward, rows, tunesmith_cli, tmp_path):
    data = rows(PAIR, PAIR)
    code, out, err = tunesmith_cli("score", reward, "--data", data, "--limit", 1, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["rows"] == 1
    assert set(found["metrics"]["preference_accuracy"]) == {"value", "n", "low", "high"}
    code, out, _ = tunesmith_cli("score", reward, "--data", data, "--output", tmp_path / "o.jsonl")
    assert code == 0
    assert out.startswith("score ")
    assert "\nshort " in out
    assert out.rstrip().endswith("2 rows with scores are in " + str(tmp_path / "o.jsonl"))


def test_heads_are_told_apart(rows, tmp_path):
    """A second head that nothing moves; the combined score is their mean."""
    folder = save_reward(tmp_path / "two")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score = torch.nn.Linear(32, 2, bias=False)
    with torch.no_grad():
        model.score.weight.zero_()[0, 0] = 1.0
    model.config.num_labels, model.num_labels = 2, 2
    model.config.id2label = {0: "helpful", 1: "harmless"}
    model.save_pretrained(folder)
    out = tmp_path / "o.jsonl"
    found = tunesmith.score(folder, data=rows(PAIR), output=str(out))
    (record,) = load(str(out)).records
    heads = record.extra["scored"]["heads"]
    assert heads["harmless"] == [0.0, 0.0]
    assert record.extra["scored"]["scores"] == pytest.approx([h / 2 for h in heads["helpful"]])
    assert found["metrics"]["score_harmless"]["value"] == 0


def test_rows_without_an_answer_and_long_ones_are_left_out(reward, rows):
    asked = {"messages": [{"role": "user", "content": "q"}]}
    long = {"messages": talk("q", "a" * 300)}
    found = tunesmith.score(reward, data=rows({"messages": talk("q", "a")}, asked, long))
    assert found["rows"] == found["answers"] == 1
    assert any("1 of 3 rows hold no answer and are left out; the first is" in n for n in found["notices"])
    assert any("1 of 2 rows have an answer beyond the reward model's context" in n for n in found["notices"])


def test_what_is_wrong_is_said(policy, reward, rows, refused, tmp_path):
    data = rows(PAIR)
    assert "is no reward model" in refused("score", policy, "--data", data)
    assert "rule is a metric, not a reward model" in refused("score", "rule", "--data", data)
    assert "there is no data file" in refused("score", reward, "--data", tmp_path / "none.jsonl")
    assert "exists already" in refused("score", reward, "--data", data, "--output", data)
    said = refused("score", reward, "--data", rows({"text": "once"}, name="t.jsonl"))
    assert "holds no answer to score; it holds text rows" in said
    with pytest.raises(InputError, match="limit is 0"):
        tunesmith.score(reward, data=data, limit=0)
    with pytest.raises(InputError, match=r"no row can be scored: 1 of 1 rows have an answer beyond"):
        tunesmith.score(reward, data=rows({"messages": talk("q", "a" * 300)}))


def test_a_row_that_the_template_refuses_is_named(rows, tmp_path):
    folder = save_reward(tmp_path / "strict")
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    bad = {"messages": [{"role": "system", "content": "s"}, *talk("q", "a")]}
    with pytest.raises(InputError, match=r"rows.jsonl, row 2: the model's chat template refuses .*no system"):
        tunesmith.score(folder, data=rows({"messages": talk("q", "a")}, bad))


def test_a_pair_with_an_empty_answer_is_left_out(reward, rows):
    """Its other answer alone compares nothing."""
    found = tunesmith.score(reward, data=rows(PAIR, {**PAIR, "rejected": ""}, {**PAIR, "chosen": " "}))
    assert (found["rows"], found["answers"]) == (1, 2)
    assert any("2 of 3 rows have an empty answer and are left out; the first is" in n for n in found["notices"])

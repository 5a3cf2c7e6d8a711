"""Evaluation of records: perplexity against plain transformers, prompts and references, families, what is left out."""

import json
import math

import pytest
import torch

import tunesmith
from tunesmith.data.records import Chat, Origin, Text
from tunesmith.errors import InputError
from tunesmith.evaluation.evaluator import answer_length, default_metrics, evaluate_records
from tunesmith.evaluation.items import make_items
from tunesmith.model.policy import make_policy


def chat(row, *contents, extra=None, trained=None, tools=None):
    """A conversation of user and assistant in turn; all the assistant's turns are trained."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    trained = [m["role"] == "assistant" for m in messages] if trained is None else trained
    return Chat(messages, trained, Origin("rows.jsonl", row), tools, extra or {})


@pytest.fixture
def policy(byte_model):
    before = byte_model.config._attn_implementation
    yield make_policy(byte_model)[0]
    byte_model.set_attn_implementation(before)


@pytest.fixture
def answers(monkeypatch):
    """Let the model say what a test wants; returns the prompts it was asked, as text."""
    said, asked = [], []

    def answer(model, tokenizer, prompts, **_):
        asked.extend(tokenizer.decode(p) for p in prompts)
        return said[: len(prompts)]

    monkeypatch.setattr("tunesmith.model.generate.generate", answer)
    return said, asked


def plain_nll(model, tokenizer, before, answer):
    """Summed -log p of `answer` after `before`, and its tokens, by plain transformers."""
    prompt, whole = (tokenizer(t, return_tensors="pt").input_ids for t in (before, before + answer))
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=whole).logits[0].double(), -1)
    n = prompt.shape[1]
    targets = whole[0, n:]
    return -float(logps[n - 1 : -1].gather(1, targets[:, None]).sum()), len(targets)


def test_perplexity_equals_plain_transformers(policy, byte_model, byte_tokenizer):
    before = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format
    with policy.plain_attention():
        wanted = [
            plain_nll(byte_model, byte_tokenizer, before("hi"), "hello<|im_end|>"),
            plain_nll(byte_model, byte_tokenizer, before("how?"), "well, and you<|im_end|>"),
        ]
    found = evaluate_records(
        policy, byte_tokenizer, [chat(1, "hi", "hello"), chat(2, "how?", "well, and you")], [{"name": "perplexity"}]
    )
    assert [i.tokens for i in found.items] == [n for _, n in wanted]
    assert [i.nll for i in found.items] == pytest.approx([nll for nll, _ in wanted], rel=1e-5)
    total, tokens = (sum(x) for x in zip(*wanted, strict=True))
    assert found.metrics["perplexity"]["value"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert found.metrics["perplexity"]["n"] == 2


def test_answers_are_the_models_own(policy, byte_model, byte_tokenizer):
    """Through the policy in flat attention the answer is the one plain transformers gives."""
    ids = byte_tokenizer("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    found = evaluate_records(policy, byte_tokenizer, [chat(1, "hi", "x")], [{"name": "exact_match"}], max_new_tokens=8)
    with policy.plain_attention():
        for _ in range(8):
            ids = torch.cat([ids, byte_model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    said = byte_tokenizer.decode(ids[0, -8:], skip_special_tokens=True)
    assert found.items[0].answer == said.strip()
    assert found.metrics["exact_match"]["value"] == 0.0
    assert byte_model.config._attn_implementation == "flat"


def test_prompt_and_reference_are_those_of_the_last_trained_turn(policy, byte_tokenizer, answers):
    said, asked = answers
    said += ["two", "no"]
    rows = [
        chat(1, "a", "one", "b", "two"),
        chat(2, "a", "one", "b", "two", trained=[False, True, False, False]),
        chat(3, "a", "one", trained=[False, False]),
    ]
    found = evaluate_records(policy, byte_tokenizer, rows, [{"name": "exact_match"}])
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    start = "<|im_start|>assistant\n"
    first = turn("user", "a")
    assert asked == [first + turn("assistant", "one") + turn("user", "b") + start, first + start]
    assert [i.reference for i in found.items] == ["two", "one", None]
    assert [i.scores.get("exact_match") for i in found.items] == [(1.0, 1.0), (0.0, 1.0), None]
    assert found.metrics["exact_match"]["n"] == 2


def test_tool_calls_are_compared_as_the_template_writes_them(policy, byte_tokenizer, answers):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = Chat(
        [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
        [False, True],
        Origin("rows.jsonl", 1),
    )
    (item,) = make_items([row], byte_tokenizer)
    assert item.reference.startswith('<call>{"')
    assert item.reference.endswith("}</call>")
    answers[0].append(item.reference)
    assert (
        evaluate_records(policy, byte_tokenizer, [row], [{"name": "exact_match"}]).metrics["exact_match"]["value"] == 1
    )


def test_families_and_their_mean(policy, byte_tokenizer, answers):
    """Right: 3 of 3 sums, 0 of 1 sorts. Over rows 3/4, over families 1/2. The row without a category counts in the whole."""
    answers[0].extend(["1", "1", "1", "0", "1"])
    kinds = ["sums", "sums", "sums", "sorts", None]
    rows = [chat(i, "q", "1", extra={"category": k} if k else {}) for i, k in enumerate(kinds, 1)]
    found = evaluate_records(policy, byte_tokenizer, rows, [{"name": "exact_match"}, {"name": "perplexity"}]).metrics
    values = {name: (m["value"], m["n"]) for name, m in found.items() if name.startswith("exact")}
    assert values == {
        "exact_match": (0.8, 5),
        "exact_match/sorts": (0.0, 1),
        "exact_match/sums": (1.0, 3),
        "exact_match/families": (0.5, 2),
    }
    assert {n for n in found if n.startswith("perp")} == {"perplexity", "perplexity/sorts", "perplexity/sums"}
    assert found["exact_match/families"]["low"] == found["exact_match/families"]["high"] == 0.5


def test_rules_score_rows_that_carry_them(policy, byte_tokenizer, answers):
    answers[0].extend(["in the kitchen", "seven", "b"])
    rows = [
        chat(1, "where?", "kitchen", extra={"check": {"rule": "contains", "texts": ["kitchen"]}}),
        chat(2, "how many?", extra={"check": {"rule": "number", "value": 7}}),  # no reference at all
        chat(3, "which?", "b"),
    ]
    found = evaluate_records(policy, byte_tokenizer, rows, [{"name": "rule"}])
    assert [i.scores["rule"][0] for i in found.items] == [1, 0, 1]
    rows[1].extra["check"] = {"rule": "nummber", "value": 7}
    with pytest.raises(InputError, match=r'rows.jsonl, row 2: there is no rule named "nummber"'):
        evaluate_records(policy, byte_tokenizer, rows, [{"name": "rule"}])


def test_prompts_that_fill_the_context_do_not_count_and_are_named(policy, byte_tokenizer, answers):
    answers[0].append("1")
    rows = [chat(1, "q", "1"), chat(2, "q" * 300, "1")]
    found = evaluate_records(policy, byte_tokenizer, rows, [{"name": "exact_match"}])
    assert found.metrics["exact_match"]["n"] == 1
    assert found.notices == [
        "1 of 2 prompts fill the context of 256 tokens and got no answer, so they do not count; the first is rows.jsonl, row 2"
    ]
    with pytest.raises(InputError, match="exact_match has nothing to measure"):
        evaluate_records(policy, byte_tokenizer, rows[1:], [{"name": "exact_match"}])


def test_default_metrics_say_why(byte_tokenizer):
    def names(*rows):
        chosen, reason = default_metrics(make_items(rows, byte_tokenizer), byte_tokenizer)
        return [m["name"] for m in chosen], reason

    assert names(chat(1, "q", "x" * 32))[0] == ["exact_match", "perplexity"]
    assert names(chat(1, "q", "x" * 33))[0] == ["perplexity"]
    assert names(chat(1, "q", "x" * 33, extra={"check": {}}))[0] == ["rule", "perplexity"]
    assert names(Text("once", Origin("t", 1))) == (["perplexity"], "perplexity only: the rows hold no references")


def test_prompts_are_measured_against_their_reference(model_folder, rows_file, byte_model, byte_tokenizer):
    data = rows_file({"prompt": "hi", "reference": "hello"}, {"prompt": "how?", "reference": "well"})
    found = tunesmith.evaluate(str(model_folder), data=data)["metrics"]
    nll, tokens = plain_nll(
        byte_model, byte_tokenizer, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "hello<|im_end|>"
    )
    assert {name: m["n"] for name, m in found.items()} == {"exact_match": 2, "perplexity": 2}
    first = tunesmith.evaluate(str(model_folder), data=data, metrics=["perplexity"], limit=1)["metrics"]
    assert first["perplexity"]["value"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    ruled = rows_file({"prompt": "hi", "check": {"rule": "contains", "texts": ["hello"]}})
    assert list(tunesmith.evaluate(str(model_folder), data=ruled)["metrics"]) == ["rule"]
    with pytest.raises(InputError, match="nothing to measure: no row has an answer, a reference or a rule"):
        tunesmith.evaluate(str(model_folder), data=rows_file({"prompt": "hi"}))


def test_pairs_and_verdicts_are_answered_but_not_measured(model_folder, rows_file):
    pairs = {"prompt": "hi", "chosen": "hello", "rejected": "no"}
    verdicts = {"prompt": "hi", "completion": "hello", "label": False}
    (alone,) = tunesmith.generate(str(model_folder), prompt="hi", max_new_tokens=4)["answers"]
    for row, kind in ((pairs, "preference"), (verdicts, "verdict")):
        data = rows_file(row)
        with pytest.raises(InputError, match=f"holds {kind} rows, and metrics measure chat, prompt, text rows"):
            tunesmith.evaluate(str(model_folder), data=data)
        (one,) = tunesmith.generate(str(model_folder), data=data, max_new_tokens=4)["answers"]
        assert one == alone | {"file": data, "row": 1}
    found = tunesmith.evaluate(str(model_folder), data={"path": rows_file(pairs), "as": "chat"}, metrics=["perplexity"])
    assert found["metrics"]["perplexity"]["n"] == 1


def test_answer_length_by_hand(byte_tokenizer):
    def length(*rows):
        return answer_length(make_items(rows, byte_tokenizer), byte_tokenizer)

    assert length(chat(1, "q", "12345"), chat(2, "q", "1")) == 26
    assert length(chat(1, "q", "x" * 200)) == 256
    assert length(chat(1, "q", "x"), chat(2, "q", extra={"check": {}})) == 256


@pytest.fixture
def rows_file(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    return write


def test_the_verb_measures_a_folder_and_a_file(model_folder, rows_file, byte_model, byte_tokenizer):
    data = rows_file({"prompt": "hi", "completion": "hello"}, {"prompt": "how?", "completion": "well"})
    found = tunesmith.evaluate(str(model_folder), data=data)
    nll, tokens = plain_nll(
        byte_model, byte_tokenizer, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "hello<|im_end|>"
    )
    assert list(found["metrics"]) == ["exact_match", "perplexity"]
    assert any("metrics: exact_match and perplexity" in n for n in found["notices"])
    first = tunesmith.evaluate(str(model_folder), data=[data], metrics=["perplexity"], limit=1)["metrics"]
    assert first["perplexity"]["value"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_generate_text_answers_a_prompt_and_a_file(model_folder, rows_file):
    data = rows_file(*({"prompt": q, "completion": "x"} for q in ("hi", "how?")))
    (one,) = tunesmith.generate(str(model_folder), prompt="hi", max_new_tokens=6)["answers"]
    both = tunesmith.generate(str(model_folder), data=data, max_new_tokens=6)["answers"]
    assert both[0] == one | {"file": data, "row": 1}
    assert (both[1]["prompt"], both[1]["row"]) == ("how?", 2)
    with pytest.raises(InputError, match="either a prompt or data"):
        tunesmith.generate(str(model_folder))


def test_what_is_wrong_is_said_before_weights_are_loaded(model_folder, rows_file, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("tunesmith.model.loading.load_model", refuse)
    good = rows_file({"prompt": "hi", "completion": "hello", "check": {"rule": "no such"}})
    model = str(model_folder)
    with pytest.raises(InputError, match=r'rows.jsonl, row 1: there is no rule named "no such"'):
        tunesmith.evaluate(model, data=good)
    with pytest.raises(InputError, match='there is no metric "perplexty"'):
        tunesmith.evaluate(model, data=good, metrics=["perplexty"])
    with pytest.raises(InputError, match="limit is 0"):
        tunesmith.evaluate(model, data=good, limit=0)
    with pytest.raises(InputError, match="nowhere"):
        tunesmith.evaluate(model + "/nowhere", data=good)
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        tunesmith.evaluate(model, data=good.replace("rows", "absent"))
    with pytest.raises(InputError, match='device "tpu" is not here'):
        tunesmith.evaluate(model, data=good, metrics=["perplexity"], device="tpu")
    with pytest.raises(InputError, match="temperature is -1"):
        tunesmith.generate(model, prompt="hi", temperature=-1)
    long = rows_file({"prompt": "x" * 300, "completion": "hello"})
    with pytest.raises(InputError, match=r"rows.jsonl, row 1: the prompt has 3\d\d tokens, the model's context is 256"):
        tunesmith.generate(model, data=long)

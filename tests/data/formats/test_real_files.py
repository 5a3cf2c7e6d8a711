"""Every format on real files, as their authors published them: what they are detected as, what they make, and exact round trips."""

import csv
import json
from collections import Counter
from dataclasses import replace

import pytest

from tunesmith.data import detect
from tunesmith.data.content import turns
from tunesmith.data.formats._common import RowError
from tunesmith.data.kinds import to_row
from tunesmith.data.records import KINDS


def items(file, headless=False):
    """Return the rows of a JSON, JSONL or headless tab-separated file, numbered from 1."""
    content = file.read_text(encoding="utf-8-sig")
    if headless:
        listed = [
            {str(i): v for i, v in enumerate(row)}
            for row in csv.reader(content.split("\n"), delimiter="\t", quoting=3)
            if row
        ]
    else:
        try:
            listed = json.loads(content)
        except ValueError:
            listed = [json.loads(line) for line in content.split("\n") if line.strip()]
        listed = listed["examples"] if isinstance(listed, dict) else listed
    return list(enumerate(listed, 1))


def load(file, columns=None, labels=None):
    """Return (format, records) of a file, each row read as the file's format."""
    raw = items(file, headless=columns is not None)
    named = [(n, detect.rename(row, columns or {}, detect.Origin(file.name, n))) for n, row in raw]
    name, _ = detect.detect(named, file.name)
    made = []
    for item in detect.rows(raw, name, file.name, columns, labels):
        assert not isinstance(item, RowError), item
        made += detect.convert(item[1], detect.Origin(file.name, item[0]), name)
    return name, made


FILES = [
    ("instruction/llamafactory/c4_demo.jsonl", "text", {"text": 300}),
    ("instruction/stanford_alpaca_5000/alpaca_5000.json", "alpaca", {"chat": 5000}),
    ("instruction/rasbt/instruction-data.json", "alpaca", {"chat": 1100}),
    ("instruction/llamafactory/identity.json", "alpaca", {"chat": 91}),
    ("instruction/torchtune_fixtures/alpaca_tiny.json", "alpaca", {"chat": 100}),
    ("instruction/litgpt_fixtures/dolly.json", "dolly", {"chat": 12}),
    ("instruction/litgpt_fixtures/longform_train.json", "prompt_completion", {"chat": 17}),
    ("eval/gsm8k/train.jsonl", "prompt_completion", {"chat": 7473}),
    ("instruction/open_instruct/sft_sample.jsonl", "messages", {"chat": 100}),
    ("instruction/llamafactory/v1_sft_demo.jsonl", "messages", {"chat": 500}),
    ("instruction/llamafactory/reason_tool_use_demo_50.jsonl", "messages", {"chat": 50}),
    ("instruction/llamafactory/glaive_toolcall_en_demo.json", "sharegpt", {"chat": 300}),
    ("instruction/fastchat/dummy_conversation.json", "sharegpt", {"chat": 500}),
    ("instruction/self_instruct/seed_tasks.jsonl", "self_instruct", {"chat": 175}),
    ("instruction/self_instruct/user_oriented_instructions.jsonl", "self_instruct", {"chat": 252}),
    ("eval/bbh/navigate.json", "flan", {"chat": 250}),
    ("preference/llamafactory/dpo_en_demo.json", "preference", {"preference": 300}),
    ("instruction/llamafactory/v1_dpo_demo.jsonl", "preference", {"preference": 10}),
    ("instruction/rasbt/instruction-data-with-preference.json", "preference", {"preference": 1100}),
    ("instruction/torchtune_fixtures/stack_exchange_paired_tiny.json", "preference", {"preference": 25}),
    ("preference/llamafactory/kto_en_demo.json", "verdict", {"verdict": 300}),
    ("instruction/open_instruct/rlvr_sample.jsonl", "prompt", {"prompt": 100}),
    ("eval/ifeval/input_data.jsonl", "prompt", {"prompt": 541}),
    ("instruction/fastchat/question.jsonl", "prompt", {"prompt": 80}),
    ("instruction/open_assistant/en_100_tree.jsonl", "oasst", {"chat": 105, "preference": 212}),
    ("instruction/open_assistant/en_100_message.jsonl", "oasst", {"chat": 105, "preference": 212}),
    ("instruction/open_assistant/realistic_seed_data.json", "oasst", {"chat": 74}),
]


@pytest.mark.parametrize(
    ("path", "name", "counts"), FILES, ids=lambda v: v.rsplit("/", 1)[-1] if isinstance(v, str) else ""
)
def test_real_files(shared, path, name, counts):
    found, records = load(shared / "data" / path)
    assert found == name
    assert Counter(KINDS[type(r)] for r in records) == counts
    for record in records:
        row = json.loads(json.dumps(to_row(record)))
        (again,) = detect.convert(row, record.origin, detect.best_match(row)[0])
        assert replace(again, origin=record.origin) == record


def test_flan_chain_of_thought_without_a_header(shared):
    columns = detect.check_columns({"inputs": 0, "targets": 1, "rationale": 2}, "data")
    name, records = load(shared / "data/instruction/flan_cot/strategyqa_train.tsv", columns)
    assert name == "flan"
    assert len(records) > 2000
    assert {r.messages[1]["content"].rsplit("\n", 1)[1] for r in records} == {"The answer is yes.", "The answer is no."}


def test_sentiment_without_a_header_and_with_named_labels(shared):
    columns, labels = {"text": "0", "label": "1"}, detect.check_labels({0: "negative", 1: "positive"}, "data")
    name, records = load(shared / "data/eval/sst2/dev.tsv", columns, labels)
    assert name == "classification"
    answers = Counter(r.messages[1]["content"] for r in records)
    assert set(answers) == {"negative", "positive"}
    assert sum(answers.values()) == len(items(shared / "data/eval/sst2/dev.tsv", headless=True)) == 872


def test_what_they_say(shared):
    """Spot values that reading wrongly would lose."""
    _, chats = load(shared / "data/instruction/llamafactory/reason_tool_use_demo_50.jsonl")
    stated = [
        item["tools"] not in ("", "[]")
        for _, item in items(shared / "data/instruction/llamafactory/reason_tool_use_demo_50.jsonl")
    ]
    assert [chat.tools is not None for chat in chats] == stated
    assert any(m.get("tool_calls") for chat in chats for m in chat.messages)
    assert any(m.get("reasoning_content") for chat in chats for m in chat.messages)
    _, verdicts = load(shared / "data/preference/llamafactory/kto_en_demo.json")
    assert Counter(v.good for v in verdicts) == {True: 150, False: 150}
    assert all(m["role"] == "assistant" for v in verdicts for m in v.answer)
    _, pairs = load(shared / "data/preference/llamafactory/dpo_en_demo.json")
    assert all(pair.prompt[-1]["role"] == "user" for pair in pairs)
    _, v1 = load(shared / "data/instruction/llamafactory/v1_dpo_demo.jsonl")
    assert all([m["role"] for m in pair.prompt] == ["system", "user"] for pair in v1)
    _, questions = load(shared / "data/instruction/fastchat/question.jsonl")
    assert sum(q.reference is not None for q in questions) == 39
    _, trees = load(shared / "data/instruction/open_assistant/en_100_tree.jsonl")
    assert len({id(m) for r in trees for m in turns(r)}) <= 1167  # no message is made up
    trained = [
        m["content"] for r in trees if KINDS[type(r)] == "chat" for m, t in zip(r.messages, r.trained, strict=True) if t
    ]
    assert 100 <= len(trained) <= 100 + 329 + 51  # one answer to each question at most


@pytest.mark.parametrize("path", ["instruction/fastchat/gpt-4.jsonl", "instruction/fastchat/judge_prompts.jsonl"])
def test_what_is_no_data_set_is_refused_by_its_fields(shared, path):
    with pytest.raises(RowError, match="are those of no known format") as e:
        load(shared / "data" / path)
    assert e.value.kind == "unknown_format"


def test_pictures_are_refused(shared):
    with pytest.raises(RowError, match='row 1: field "images" names media'):
        load(shared / "data/multimodal/llamafactory/mllm_demo.json")

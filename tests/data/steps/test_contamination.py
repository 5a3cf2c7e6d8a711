"""Contamination: rows that hold evaluation texts are found by run, by short prompt, in every kind; templates and tables are not."""

import json

import numpy as np
import pytest
from copies_planted import Writer, chat

from tunesmith.data import contaminated
from tunesmith.data.ngrams import runs
from tunesmith.data.records import Origin, Preference, Text
from tunesmith.data.rows import Rows
from tunesmith.data.steps import contamination
from tunesmith.errors import InputError


def run(records, **options):
    rows = Rows(records)
    rows.step = "contamination"
    return rows, contamination.apply(rows, **options)


@pytest.fixture
def evaluation(write):
    """A file of 40 questions, their prompts' texts, and the writer that made them."""
    writer = Writer(7)
    prompts = [writer.text(40) for _ in range(39)] + ["Who built the old mill?"]
    return write("test.jsonl", [{"prompt": p, "completion": writer.text(30)} for p in prompts]), prompts, writer


def test_runs_by_hand():
    assert runs(["a", "b", "c", "d"], 3) == ["a b c", "b c d"]
    assert runs(["a", "b"], 3) == ["a b"]
    assert runs([], 3) == []


def test_rows_with_a_run_of_thirteen_words_are_found(evaluation):
    path, prompts, writer = evaluation
    piece = prompts[4].split()[10:23]
    records = [
        chat(writer.text(30), writer.text(30), 1),
        chat(f"{writer.text(20)} {' '.join(piece).upper()}, {writer.text(20)}", writer.text(30), 2),
        chat(f"{writer.text(20)} {' '.join(piece[:12])} {writer.text(20)}", writer.text(30), 3),  # twelve only
        chat(writer.text(30), prompts[7], 4),
        Text(prompts[9] + writer.text(100), Origin("x", 5)),
        Preference(
            [{"role": "user", "content": "Hm?"}],
            [[{"role": "assistant", "content": t}] for t in ("No.", prompts[3])],
            Origin("x", 6),
        ),
    ]
    rows, facts = run(records, against=[path])
    assert [f.id for f in rows.fates] == [1, 3, 4, 5]
    assert [f.facts["row"] for f in rows.fates] == [5, 8, 10, 4]
    assert rows.fates[1].reason == f"shares words with row 8 of the evaluation file {path}"
    assert rows.fates[1].facts["share"] == pytest.approx(28 / (18 + 28), abs=0.06)  # of the runs of prompt and answer
    assert facts["tables"][0]["rows"] == [[path, 40, 4, 4, 0]]
    assert facts["numbers"] == {"contaminated": 4, "evaluation_rows_met": 4}


def test_a_short_prompt_counts_as_a_whole(evaluation):
    path, _, writer = evaluation
    records = [
        chat("who built the old mill", writer.text(9), 1),
        chat("Who built the old mill? And who runs it?", writer.text(9), 2),
        chat(writer.text(20), "Who built the old mill?", 3),  # an answer may say it
    ]
    assert [f.id for f in run(records, against=[path])[0].fates] == [0]


def test_edited_questions_are_found(write):
    writer = Writer(9)
    prompts = [writer.text(writer.r.randint(12, 60)) for _ in range(120)]
    path = write("test.jsonl", [{"prompt": p, "completion": "x"} for p in prompts])
    records = [chat(writer.edited(p, writer.r.uniform(0.05, 0.15)), writer.text(30), i) for i, p in enumerate(prompts)]
    records += [chat(writer.text(30), writer.text(30), i) for i in range(200)]
    rows, facts = run(records, against=[path])
    right = [f for f in rows.fates if f.facts["row"] == f.id + 1]
    print(f"\ncontamination: {len(right)} of 120 edited questions found, {len(list(rows.fates)) - len(right)} false")
    assert len(right) >= 0.95 * 120
    assert len(list(rows.fates)) == len(right)
    assert {f.reason.split(" row ")[0] for f in rows.fates} == {"shares words with", "asks nearly the same as"}
    only = run(records, against=[path], near=False)[1]["numbers"]["contaminated"]
    assert only < facts["numbers"]["contaminated"]


def test_other_questions_of_one_template_are_not(write):
    writer = Writer(10)
    asked = "Read the passage with care and say in one word what its writer thinks of it, please. The passage is: {} Answer:"
    path = write("test.jsonl", [{"prompt": asked.format(writer.text(12)), "completion": "x"} for _ in range(40)])
    assert len(run([chat(asked.format(writer.text(12)), "y", i) for i in range(60)], against=[path])[0]) == 60


def test_mark_only_marks(evaluation):
    path, prompts, writer = evaluation
    rows, facts = run([chat(prompts[0], "x", 1), chat(writer.text(30), "x", 2)], against=[path], action="mark")
    assert len(rows) == 2
    assert rows.columns["contamination"].tolist() == [1, 0]
    assert facts["summary"].endswith("are marked.")


def test_the_template_of_an_evaluation_file_is_not_its_content(write):
    writer = Writer(8)
    template = "Below is a question that you answer with one word, and with nothing else at all, please: "
    path = write("test.jsonl", [{"prompt": template + writer.text(30), "completion": "x"} for _ in range(30)])
    assert len(run([chat(template + writer.text(30), "y", 1)], against=[path])[0]) == 1


def test_tables_and_numbers_tell_nothing(write):
    path = write("test.jsonl", [{"prompt": "| - | - | " * 20, "completion": "0 1 " * 30}])
    assert len(run([chat("| - | - | " * 10, "0 1 " * 20, 1)], against=[path])[0]) == 1


def test_several_files_and_a_mapping(evaluation, write):
    path, prompts, _ = evaluation
    other = write("other.json", json.loads(json.dumps([{"question": prompts[1], "note": "x", "gold": "y"}])))
    columns = {"path": other, "columns": {"prompt": "question", "completion": "gold"}}
    rows, facts = run([chat(prompts[1], "x", 1), chat(prompts[2], "x", 2)], against=[path, columns])
    assert len(rows) == 0
    assert facts["tables"][0]["rows"] == [[path, 40, 2, 2, 0], [other, 1, 1, 0, 0]]


def test_an_index_leaves_out_what_most_rows_share():
    records = [chat(f"one two three four five {i} a{i} b{i} c{i} six seven", "", i) for i in range(20)]
    index = contaminated.index(records, n=5)
    # Of each 7 runs "five 3 a3 b3 c3" and "3 a3 b3 c3 six" stay: the others begin or end with two words that all rows share.
    assert len(index.hashes) == 20 * 2
    assert np.all(np.diff(index.hashes.astype(object)) > 0)
    assert contaminated.shared(records[3], index)[0].tolist() == [3, 3]
    assert contaminated.shared(records[3], index)[1] == 2 / 7


def test_wrong_options(write):
    with pytest.raises(InputError, match="needs the evaluation files"):
        contamination.check()
    with pytest.raises(InputError, match="there is no data file"):
        contamination.check(against=["nowhere.jsonl"])


def test_a_benchmark_in_real_data_is_found(shared):
    from tunesmith.data.sources import load

    data = shared / "data"
    records = load([str(data / "instruction/open_instruct/rlvr_sample.jsonl")]).records
    rows, facts = run(records, against=[str(data / "eval/gsm8k/train.jsonl")])
    print(f"\ncontamination: {facts['summary']}")
    assert {r.extra.get("dataset") for r, dead in zip(records, ~rows.alive, strict=True) if dead} == {"gsm8k"}
    assert all(r.extra.get("dataset") != "gsm8k" for _, r in rows)

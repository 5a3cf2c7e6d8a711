"""Rows under preparation: what steps may do to them, their fates, and that they cost files and not memory."""

import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.rows import Fate, Rows
from tunesmith.data.spool import Journal, Records, Spooled, plain


def texts(n: int) -> list[Text]:
    return [Text(f"t{i}", Origin("a.jsonl", i + 1)) for i in range(n)]


def turn(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Zürich", "n": [1, 2.5, None, True]}}}
ONE_OF_EACH = [
    Text("ä\u2028\x00 \U0001f600", Origin("a b.jsonl", 3), {"n": 2**70, "deep": [{"x": [1.5, None]}]}),
    Chat(
        [turn("user", "q"), turn("assistant", "", tool_calls=[CALL])],
        [False, True],
        Origin("b", 1, 2),
        tools=[{"type": "function", "function": {"name": "f"}}],
    ),
    Preference([turn("user", "q")], [[turn("assistant", "a")], [turn("assistant", "b")]], Origin("c", 9), scores=[2.0, 1.0]),
    Verdict([turn("user", "q")], [turn("assistant", "a")], False, Origin("d", 1)),
    Prompt([turn("user", "q")], Origin("e", 1), "ref"),
]  # fmt: skip


def test_steps_drop_change_and_add_while_they_go_over_the_rows():
    rows = Rows(texts(5))
    rows.step = "one"
    seen = []
    for id_, record in rows:
        seen.append((id_, record.text))
        if id_ == 1:
            rows.drop(3, "not wanted")
        if id_ == 2:
            rows.change(2, replace(record, text="new"), "said otherwise")
    assert seen == [(0, "t0"), (1, "t1"), (2, "t2"), (4, "t4")]
    added = rows.add(Text("more", Origin("a.jsonl", 1)), "made", from_=[0])
    assert [(i, r.text) for i, r in rows] == [(0, "t0"), (1, "t1"), (2, "new"), (4, "t4"), (5, "more")]
    assert (added, len(rows), rows[3].text) == (5, 5, "t3")
    assert rows.alive.tolist() == [True, True, True, False, True, True]
    assert rows.is_new.tolist() == [False, False, True, False, False, True]
    assert list(rows.fates) == [
        Fate(3, "one", "drop", "not wanted", {}),
        Fate(2, "one", "change", "said otherwise", {}),
        Fate(5, "one", "add", "made", {"from_": [0]}),
    ]
    assert rows.counts == {("one", "drop"): 1, ("one", "change"): 1, ("one", "add"): 1}
    with pytest.raises(IndexError):
        rows[6]


def test_a_record_has_its_own_history_in_order():
    rows = Rows(texts(3))
    for step in ("one", "two"):
        rows.step = step
        rows.change(1, Text(step, Origin("a.jsonl", 2)), f"by {step}")
        rows.change(0, Text(step, Origin("a.jsonl", 1)), "x")
    rows.drop(1, "enough", of=np.int64(0), similarity=np.float32(0.5))
    assert [(f.step, f.action) for f in rows.history(1)] == [("one", "change"), ("two", "change"), ("two", "drop")]
    assert rows.history(1)[-1].facts == {"of": 0, "similarity": 0.5}
    assert rows.history(2) == []
    assert rows.fates[-1].id == 1
    assert [f.id for f in rows.fates[:2]] == [1, 0]


def test_a_spared_record_stays_and_its_fate_says_what_spoke_against_it():
    rows = Rows(texts(2), spared=[1])
    rows.step = "quality"
    rows.drop(0, "short")
    rows.drop(1, "short")
    assert rows.alive.tolist() == [False, True]
    assert [(f.action, f.reason) for f in rows.history(1)] == [("spare", "short")]


def test_the_first_reason_to_drop_a_record_stands():
    rows = Rows(texts(2))
    rows.step = "quality"
    rows.drop(0, "short")
    rows.drop(0, "also ugly")
    assert [f.reason for f in rows.history(0)] == ["short"]
    assert rows.counts == {("quality", "drop"): 1}


def test_columns_grow_with_the_rows():
    rows = Rows(texts(2))
    rows.column("length")[:] = [3, 4]
    for i in range(40):
        rows.add(Text(str(i), Origin("a", 1)), "made")
    assert rows.column("length")[:2].tolist() == [3, 4]
    assert np.isnan(rows.columns["length"][2:]).all()
    assert len(rows.column("other")) == len(rows.alive) == 42
    rows.column("length")[41] = 7
    assert rows.columns["length"][41] == 7


@pytest.mark.parametrize("record", ONE_OF_EACH)
def test_every_kind_comes_back_equal_from_its_file(record):
    records = Records()
    places = [records.put(r) for r in (Text("before", Origin("x", 1)), record, record)]
    assert [records.get(p) for p in places[1:]] == [record, record]


def test_numbers_of_numpy_and_dates_come_back_as_json_has_them():
    records = Records()
    odd = Text("t", Origin("x", 1), {"score": np.float32(0.5), "ids": np.arange(2), "day": date(2026, 1, 31)})
    assert records.get(records.put(odd)).extra == {"score": 0.5, "ids": [0, 1], "day": "2026-01-31"}
    with pytest.raises(TypeError, match="a value of type bytes"):
        plain({"image": b"x"})


def test_records_are_found_in_any_order_while_more_are_written():
    records, rng = Records(), random.Random(0)
    said = ["x" * rng.choice([0, 1, 50, 3000, 400_000]) + str(i) for i in range(60)]
    places = []
    for i, text in enumerate(said):
        places.append(records.put(Text(text, Origin("a", i + 1))))
        asked = rng.randrange(len(places))
        assert records.get(places[asked]).text == said[asked]
    found = Spooled(records, np.array(places))
    assert [r.text for r in found] == said
    assert [r.text for r in found[10:20]] == said[10:20]
    for i in rng.sample(range(60), 60):
        assert (found[i].text, found[i].origin.row) == (said[i], i + 1)


def worked(folder) -> Rows:
    rows = Rows(texts(50), folder, spared=[7])
    rows.step = "one"
    rows.column("length")[:] = np.arange(50)
    for id_, record in rows:
        if id_ % 3 == 0:
            rows.drop(id_, f"reason {id_}", of=1)
        elif id_ % 3 == 1:
            rows.change(id_, replace(record, text=record.text + "!"), "louder")
    rows.drop(7, "no")
    rows.add(Text("more", Origin("b", 1)), "made", from_=[2, 4])
    return rows


def content(rows: Rows) -> tuple:
    """All that can be asked of rows."""
    columns = {name: values.tolist() for name, values in rows.columns.items()}
    histories = [rows.history(i) for i in range(len(rows.alive))]
    return (
        list(rows),
        rows.alive.tolist(),
        str(columns),
        list(rows.fates),
        histories,
        dict(rows.counts),
        rows.is_new.tolist(),
    )


def test_saved_rows_come_back_and_what_was_written_later_is_forgotten(tmp_path):
    rows = worked(tmp_path)
    facts, arrays = rows.save()
    arrays = {name: np.array(a) for name, a in arrays.items()}
    wanted = content(rows)
    rows.step = "two"
    rows.change(2, Text("lost", Origin("a.jsonl", 3)), "lost")
    rows.drop(2, "lost")
    rows.save()
    again = Rows.restored(texts(50), tmp_path, [7], facts, arrays)
    assert content(again) == wanted
    again.step = "two"
    again.drop(1, "now")
    again.add(Text("yet more", Origin("b", 2)), "made")
    assert again[51].text == "yet more"
    assert again.history(1)[-1] == Fate(1, "two", "drop", "now", {})


class Lazy(Sequence):
    """Records that are made when they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Text:
        return Text(f"text number {i} " * 20, Origin("a.jsonl", i + 1))


def test_memory_is_flat():
    """A hundred thousand records of 350 characters, a fifth dropped and a fifth changed, cost 75 bytes each at most."""
    n = 100_000
    tracemalloc.start()
    rows = Rows(Lazy(n))
    column = rows.column("length")
    for id_, record in rows:
        column[id_] = len(record.text)
        if id_ % 5 == 0:
            rows.drop(id_, "every fifth row goes", of=max(id_ - 1, 0))
        elif id_ % 5 == 1:
            rows.change(id_, replace(record, text=record.text[:-1]), "shorter")
    rows.save()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 80_000
    assert peak < 75 * n


def test_a_journal_is_a_sequence():
    journal = Journal()
    first = journal.append({"a": "\ud83d"}, -1)  # half a character, as a broken row may hold
    journal.append({"a": 2}, -1)
    last = journal.append({"a": 3}, first)
    assert [e["a"] for e in journal] == ["\ud83d", 2, 3]
    assert [e["a"] for e in journal.chain(last)] == ["\ud83d", 3]
    assert journal.chain(-1) == []

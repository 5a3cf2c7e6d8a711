"""Three small steps to prepare a small set with, and what its tests read of it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunesmith.data import prepare
from tunesmith.data.content import rewritten
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError

ODD = ["=1+1", "a\u2028b", "tab\tand \\ and \"quotes\"", "Zürich 😀", "  spaces  ", "</script>", "+x", "@y", "-z", "\x7f"]  # fmt: skip


def short(rows: Rows, *, least: int = 3) -> dict:
    """Drop short texts."""
    for id_, record in rows:
        if len(record.text) < least:
            rows.drop(id_, f"text of {len(record.text)} characters, at least {least} wanted")
    return {"summary": "short ones are gone", "numbers": {"least": least}}


def same(rows: Rows) -> dict:
    """Drop texts that were there before."""
    seen: dict[str, int] = {}
    for id_, record in rows:
        first = seen.setdefault(record.text, id_)
        if first != id_:
            rows.drop(id_, f"repeats {rows[first].origin}", of=first, similarity=1.0)
    return {}


def louder(rows: Rows, *, mark: str = "!", seed: int = 0) -> dict:
    """Change every text that begins with "say", and add a quiet one."""
    for id_, record in list(rows):
        if record.text.startswith("say"):
            rows.change(id_, rewritten(record, lambda _, text: text + mark), "made louder")
            rows.add(replace(record, text=f"quiet {record.text} {seed}"), "made from it", from_=[id_])
    return {}


def step(order: int, apply, default: bool = True, **more) -> SimpleNamespace:
    return SimpleNamespace(ORDER=order, DEFAULT=default, apply=apply, **more)


def small_steps() -> dict:
    """Three small steps, and the real ones for personal data and splits."""
    from tunesmith.data.steps import personal_data, split

    return {
        "short": step(15, short), "same": step(30, same), "personal_data": step(60, personal_data.apply, False),
        "louder": step(90, louder, False), "split": split,
    }  # fmt: skip


def lines(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]


def content(folder) -> dict[str, bytes]:
    """Every file of a set, the card without what was when, and without its page, which says that too."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    card = json.loads(found["card.json"])
    card.pop("made")
    assert found.pop("card.html").startswith(b"<!doctype html>")
    return found | {"card.json": json.dumps(card).encode()}


def refused(*arguments, **options) -> str:
    with pytest.raises(InputError) as e:
        prepare.run(*arguments, **options)
    assert "\n" not in str(e.value)
    return str(e.value)

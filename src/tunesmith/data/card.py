"""The data card: what a prepared set was made of and how, as one dict; `card.json` is it, `card.html` shows it.

All of it but "made" follows from the recipe, and is covered by its "sha256". No personal data is in it: what rows say is shown
as the step personal_data masks it, whether that step ran or not.
"""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data import recipe as recipes
from tunesmith.data import work
from tunesmith.data.content import said
from tunesmith.data.ingest import MOST_VALUES, Read
from tunesmith.data.output import Written
from tunesmith.data.records import KINDS, Chat, Message, Origin, Preference, Record, Text, Verdict
from tunesmith.data.rows import Fate, Rows
from tunesmith.data.splits import scrambled
from tunesmith.errors import InputError

VERSION = 1
KEPT_SAMPLES, DROPPED_SAMPLES, DUPLICATES, REASONS = 8, 4, 20, 10
SHOWN = 600  # characters of a sample
_CHARACTERS = [0, 1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000]
_TOKENS = [0, 1, *(2**i for i in range(2, 19))]
Facts = dict[str, Any]


class Measures:
    """What is measured of the kept rows while they are written."""

    def __init__(self, rows: Rows, fields: Sequence[str]) -> None:
        self.characters = np.full(len(rows.alive), np.nan, dtype=np.float32)
        self.kinds: Counter[str] = Counter()
        self.values: dict[str, Counter[str]] = {field: Counter() for field in fields}

    def seen(self, id_: int, record: Record) -> None:
        """Take note of a kept record."""
        self.characters[id_] = len(said(record))
        self.kinds[KINDS[type(record)]] += 1
        for field, counts in self.values.items():
            value = record.extra.get(field)
            if value is not None and (str(value) in counts or len(counts) < MOST_VALUES):
                counts[str(value)] += 1


def make(
    recipe: recipes.Recipe,
    read: Read,
    rows: Rows,
    steps: Sequence[Facts],
    written: Written,
    measures: Measures,
) -> Facts:
    """Return the card without "made". steps: {"name", "options", "kept", "dropped", "changed", "added", "spared", "facts"} each."""
    chosen = _Chosen(rows, recipe["seed"])
    steps = [step | {"facts": _masked_leaves(step["facts"]), "reasons": chosen.reasons(step["name"])} for step in steps]
    by_name = {step["name"]: step for step in steps}
    card: Facts = {
        "version": VERSION,
        "rows": counted(read, rows, steps),
        "sources": _sources(recipe, read),
        "steps": steps,
        "files": written.files,
        "splits": _splits(written),
        "kinds": dict(sorted(measures.kinds.items())),
        "lengths": {
            "characters": _lengths(read.characters, measures.characters, _CHARACTERS),
            "tokens": _tokens(recipe["model"], read, rows),
        },
        "categories": _categories(read, measures),
        "languages": by_name.get("language", {}).get("facts"),
        "personal_data": by_name.get("personal_data", {}).get("facts"),
        "samples": _samples(chosen, rows),
        "duplicates": _duplicates(chosen, rows),
        "broken": [_broken(read.broken[i]) for i in range(min(20, len(read.broken)))],
        "notices": read.notices,
        "recipe": recipe,
    }
    return card | {"sha256": sha256(card)}


def load(place: str | Path) -> Facts:
    """Return the card of a prepared set's folder, or of the card.json itself; InputError where there is none."""
    folder = Path(place)
    if not folder.exists():
        work.recover(folder)
    file = folder / "card.json" if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(f"there is no data card {file}; `tunesmith data prepare` writes one into its output folder.")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a data card ({error}).") from error
    if not isinstance(card, dict) or not {"recipe", "files", "sources", "made", "sha256"} <= set(card):
        raise InputError(f"{file} is no data card; `tunesmith data prepare` writes one into its output folder.")
    if any(Path(f["path"]).is_absolute() or ".." in Path(f["path"]).parts for f in card["files"]):
        raise InputError(f"{file} is no data card of ours: it names files outside of its folder.")
    return card


def sha256(card: Facts) -> str:
    """Return the hash of all of a card that follows from its recipe."""
    content = {k: v for k, v in card.items() if k not in ("made", "sha256")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def counted(read: Read, rows: Rows, steps: Sequence[Facts]) -> dict[str, int]:
    """Return the numbers of rows read and broken, of records they made, and of those kept, dropped, changed, added, spared."""
    records, alive = len(read.places), rows.alive
    return {
        "read": sum(f["rows"] for f in read.files),
        "broken": len(read.broken),
        "records": records,
        "kept": len(rows),
        "dropped": int((~alive).sum()),
        "changed": int((rows.is_new[:records] & alive[:records]).sum()),
        "added": len(alive) - records,
        "spared": sum(step["spared"] for step in steps),
    }


def shown(record: Record) -> str:
    """Return what a record says as people read it: who, then what."""
    match record:
        case Text():
            return record.text
        case Chat():
            return _turns(record.messages)
        case Preference():
            answers = [f"answer {i + 1} of {len(record.answers)}:\n{_turns(a)}" for i, a in enumerate(record.answers)]
            return "\n".join([_turns(record.prompt), *answers])
        case Verdict():
            return f"{_turns(record.prompt + record.answer)}\n(found {'good' if record.good else 'bad'})"
    reference = "" if record.reference is None else f"\nreference: {record.reference}"
    return _turns(record.prompt) + reference


def _turns(messages: Sequence[Message]) -> str:
    calls = [f" {json.dumps(m['tool_calls'], ensure_ascii=False)}" if m.get("tool_calls") else "" for m in messages]
    return "\n".join(f"{m['role']}: {m['content']}{call}" for m, call in zip(messages, calls, strict=True))


def masked(records: Sequence[Record]) -> list[Record]:
    """Return the records with all personal data and secrets masked that the step personal_data knows."""
    rows = Rows(records)
    recipes.all_steps()["personal_data"].apply(rows, mode="mask")
    return [rows[i] for i in range(len(records))]


@lru_cache(maxsize=10_000)
def masked_text(text: str) -> str:
    """Return a text masked as `masked` does it with records: what is said of rows may name a field's value."""
    record = masked([Text(text, Origin("", 0))])[0]
    return record.text if isinstance(record, Text) else text


def masked_reason(reason: str) -> str:
    """Return a step's reason, masked: what it says of a row's own words stands between quotation marks."""
    return masked_text(reason) if '"' in reason else reason


def _masked_leaves(value: Any) -> Any:
    """Return the value with every text in it masked, and its keys as they are."""
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, dict):
        return {k: _masked_leaves(v) for k, v in value.items()}
    return [_masked_leaves(v) for v in value] if isinstance(value, list) else value


class _Chosen:
    """Samples and reasons, found in one pass over the journal: the records with the lowest hash, of seed and number, of each step."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.drops: dict[str, list[tuple[int, int, Fate]]] = {}
        self.near: list[tuple[float, int, Fate]] = []
        self._reasons: dict[str, Counter[str]] = {}
        self.hash = scrambled(np.arange(len(rows.alive)), seed, "samples")
        kept = np.flatnonzero(rows.alive)
        self.kept: list[int] = np.sort(kept[np.argsort(self.hash[kept], kind="stable")[:KEPT_SAMPLES]]).tolist()
        for fate in rows.fates:
            if fate.action == "drop":
                self._take(fate)

    def _take(self, fate: Fate) -> None:
        counts = self._reasons.setdefault(fate.step, Counter())
        reason = re.sub(r"\d[\d,.]*\d|\d", "#", masked_reason(fate.reason))
        if reason in counts or len(counts) < MOST_VALUES:
            counts[reason] += 1
        heap = self.drops.setdefault(fate.step, [])
        _push(heap, (-int(self.hash[fate.id]), fate.id, fate), DROPPED_SAMPLES)
        if isinstance(fate.facts.get("of"), int):
            _push(self.near, (-float(fate.facts.get("similarity", 1.0)), -fate.id, fate), DUPLICATES)

    def reasons(self, step: str) -> list[list[Any]]:
        """Return [[reason, how often]], numbers in it as #; the most frequent first."""
        counts = self._reasons.get(step, Counter())
        return [list(item) for item in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:REASONS]]


def _push(heap: list[Any], item: tuple[Any, ...], most: int) -> None:
    """Keep the `most` largest items; no two have the same second value."""
    heapq.heappush(heap, item)
    if len(heap) > most:
        heapq.heappop(heap)


def _samples(chosen: _Chosen, rows: Rows) -> Facts:
    steps = {step: sorted((fate for *_, fate in heap), key=lambda f: f.id) for step, heap in chosen.drops.items()}
    kept = _texts(chosen.kept, rows)
    dropped = {}
    for step, fates in steps.items():
        texts = _texts([f.id for f in fates], rows)
        dropped[step] = [text | {"reason": masked_reason(f.reason)} for text, f in zip(texts, fates, strict=True)]
    return {"kept": kept, "dropped": dropped}


def _texts(ids: Sequence[int], rows: Rows) -> list[Facts]:
    found = []
    for id_, record in zip(ids, masked([rows[i] for i in ids]), strict=True):
        text = shown(record)
        text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        found.append({"id": id_, "file": record.origin.file, "row": record.origin.row, "text": text})
    return found


def _duplicates(chosen: _Chosen, rows: Rows) -> list[Facts]:
    """Return pairs of a dropped row and the kept one it repeats, the least alike first: there a wrong decision would be."""
    fates = [fate for *_, fate in sorted(chosen.near, key=lambda item: (-item[0], -item[1]))]
    texts = _texts([f.id for f in fates], rows)
    others = _texts([f.facts["of"] for f in fates], rows)
    return [
        {"step": f.step, "similarity": f.facts.get("similarity", 1.0), "dropped": text, "kept": other}
        for f, text, other in zip(fates, texts, others, strict=True)
    ]


def _sources(recipe: recipes.Recipe, read: Read) -> list[Facts]:
    found = []
    for info, source in zip(read.files, recipe["sources"], strict=True):
        stated = recipe["data"][info["source"]].get("licence")
        entry = {k: v for k, v in info.items() if k != "source"}
        found.append(source | entry | {"licence": stated or _licence(Path(info["path"]))})
    return found


def _licence(file: Path) -> str | None:
    """Return the licence that the README.md beside a file states at its head, as those of the hub do."""
    try:
        head = (file.parent / "README.md").read_text(encoding="utf-8")[:5000]
    except (OSError, ValueError):
        return None
    found = re.match(r"---\n(?:.*\n)*?licen[sc]e:[ \t]*([^\n#]+)", head)
    return found[1].strip().strip("\"'") if found else None


def _broken(entry: Facts) -> Facts:
    return {"file": entry["file"], "row": entry["row"], "reason": masked_reason(entry["reason"])}


def _splits(written: Written) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for file in written.files:
        counts["/".join(filter(None, (file.get("fold"), file["split"])))] += file["rows"]
    return dict(counts)


def _categories(read: Read, measures: Measures) -> Facts | None:
    """Return the values of the first field that tells categories, before and after: one most rows have, with few values."""
    for field, before in read.values.items():
        if sum(before.values()) * 2 >= len(read.places) and 1 < len(before) < MOST_VALUES:
            after = measures.values.get(field, Counter())
            shown: dict[str, list[int]] = {}
            for name in before.keys() | after.keys():
                counts = shown.setdefault(masked_text(name), [0, 0])
                counts[0] += before.get(name, 0)
                counts[1] += after.get(name, 0)
            names = sorted(shown, key=lambda n: (-shown[n][0], n))
            return {"field": field, "values": [[n, *shown[n]] for n in names]}
    return None


def _lengths(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], edges: list[int]) -> Facts:
    """Return {"edges", "before", "after": {"counts", "min", "median", "mean", "p95", "max", "total"}}."""
    return {"edges": edges, "before": _of(before, edges), "after": _of(after, edges)}


def _of(lengths: npt.NDArray[np.float32], edges: list[int]) -> Facts:
    found = lengths[~np.isnan(lengths)].astype(np.float64)
    if not len(found):
        return {"counts": [0] * (len(edges) - 1)}
    counts = np.histogram(np.minimum(found, edges[-1]), edges)[0].tolist()
    middle, high = np.percentile(found, [50, 95], method="higher").tolist()
    sizes = {
        "min": found.min(),
        "median": middle,
        "mean": round(float(found.mean()), 1),
        "p95": high,
        "max": found.max(),
    }
    return {"counts": counts, **{k: v if k == "mean" else int(v) for k, v in sizes.items()}, "total": int(found.sum())}


def _tokens(model: str | None, read: Read, rows: Rows) -> Facts | None:
    """Return the lengths in tokens of what rows say, without the template; None without a model."""
    if model is None:
        return None
    from tunesmith.model.loading import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve(model))[0]
    before = _counted(tokenizer, (said(record) for record in read.sequence), len(read.places))
    after = np.full(len(rows.alive), np.nan, dtype=np.float32)
    same = np.flatnonzero(rows.alive & ~rows.is_new)
    after[same] = before[same]
    new = np.flatnonzero(rows.alive & rows.is_new)
    after[new] = _counted(tokenizer, (said(rows[i]) for i in new.tolist()), len(new))
    return {"model": model, **_lengths(before, after, _TOKENS)}


def _counted(tokenizer: Any, texts: Iterator[str], count: int) -> npt.NDArray[np.float32]:
    found = np.zeros(count, dtype=np.float32)
    for start in range(0, count, 1000):
        some = [next(texts) for _ in range(min(1000, count - start))]
        ids = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        found[start : start + len(some)] = [len(i) for i in ids]
    return found

"""split: train, validation and test files, or k folds, with nothing that belongs together on two sides.

Rows stay together that share their prompt, a near-duplicate cluster, the row of the file they came from, the row they are a
variation of, or a field of `group_by`. Groups are drawn in the order of a hash of seed and content, until a split has its share:
the same rows always give the same splits, and rows that are added later move no more old ones than the shares demand (that
the shares are met exactly is what moves any).
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tunesmith.data.content import answer_texts
from tunesmith.data.records import Record, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.splits import (
    DEFAULT_FRACTION,
    DEFAULT_MOST,
    NONE,
    Keys,
    hashed,
    prompt_hash,
    scrambled,
    take,
    united,
)
from tunesmith.errors import InputError, did_you_mean

ORDER = 200
DEFAULT = True
NAMES = ("train", "validation", "test")
Amount = Annotated[float, Field(ge=0)]
Codes = npt.NDArray[np.int64]
_FEW = 50  # values a field to stratify by may always have; beyond, no more than one for every two rows


def apply(
    rows: Rows,
    *,
    train: Amount | None = None,
    validation: Amount | None = None,
    test: Amount | None = None,
    stratify: str | None = None,
    group_by: str | list[str] | None = None,
    folds: Annotated[int, Field(ge=2, le=100)] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the columns "split" (0 train, 1 validation, 2 test) and, with folds, "fold"; return facts for the card.

    Amounts below 1 are shares of the rows, others rows; validation and test are 5% each, at most 500 rows, unless given, train
    is all that is left (rows it does not take are dropped). stratify: a field ("label": the verdict, or the answer itself)
    whose values every split has in equal shares. With folds, validation is a part of the training rows in each, and test is
    empty unless given.
    """
    check(train=train, validation=validation, test=test, folds=folds)
    ids, keys, links, strata, names = _keys(rows, stratify, [group_by] if isinstance(group_by, str) else group_by or [])
    groups = _Groups(ids, keys, links, strata)
    count, few = len(ids), len(groups.sizes) < 3
    asked = [_rows_for(test if folds is None else test or 0, count, few)]
    asked.append(0 if folds is not None else _rows_for(validation, count, few))
    side = np.zeros(len(groups.sizes), dtype=np.int64)
    for code, target in zip((2, 1), asked, strict=True):
        side[groups.drawn(np.flatnonzero(side == 0), target, seed, NAMES[code])] = code
    _check_left(int((side == 0).sum()), asked, train, folds, count)
    column = rows.column("split")
    column[ids] = side[groups.of]
    _leave_out(rows, groups, side, train, seed)
    if folds is not None:
        fold = groups.folded(np.flatnonzero(side == 0), folds, seed)
        rows.column("fold")[ids] = np.where(side[groups.of] == 0, fold[groups.of], np.nan)
    return _facts(rows, ids, column, strata, names, stratify, len(groups.sizes), folds)


def check(
    *, train: float | None = None, validation: float | None = None, test: float | None = None, folds: int | None = None
) -> None:
    """InputError for amounts that are neither shares nor whole numbers, shares above the whole, and folds with a validation split."""
    given = {"train": train, "validation": validation, "test": test}
    for name, amount in given.items():
        if amount is not None and amount > 1 and amount != int(amount):
            raise InputError(f"split.{name} is {amount}, expected a share below 1 or a whole number of rows.")
    total = sum(a for a in given.values() if a is not None and a < 1)
    if total > 1 + 1e-9:
        raise InputError(
            f"split: train, validation and test are {total:.3g} of the rows together, which is more than there are."
        )
    if folds is not None and validation:
        raise InputError("split.folds validates on each part in turn; take split.validation away.")


def _check_left(groups: int, asked: Sequence[int], train: float | None, folds: int | None, count: int) -> None:
    """InputError where the groups that no split has taken are too few for the folds, or none to train on (unless train is 0)."""
    if folds is not None and folds > groups:
        raise InputError(
            f"split.folds is {folds}, but the rows make only {groups} group{'s' * (groups != 1)} that may be parted; ask for fewer."
        )
    if not groups and train != 0:
        raise InputError(
            f"split: validation and test take {sum(asked):,} of {count:,} rows, which leaves none to train on; ask for fewer."
        )


def _rows_for(amount: float | None, count: int, few: bool) -> int:
    """Return how many rows a split should have; at least one, unless nothing was asked for or there are hardly any groups."""
    if amount is None:
        wanted = min(round(DEFAULT_FRACTION * count), DEFAULT_MOST)
        return 0 if few else max(wanted, 1)
    return 0 if amount == 0 else max(1, round(amount * count)) if amount < 1 else int(amount)


class _Groups:
    """Rows that stay together. of (rows,): each one's group; sizes, key and stratum (that of its first row) per group."""

    def __init__(self, ids: Codes, keys: Sequence[Keys], links: tuple[Codes, Codes], strata: Codes) -> None:
        labels = united(keys, links)[ids]
        _, first, self.of = np.unique(labels, return_index=True, return_inverse=True)
        self.sizes = np.bincount(self.of, minlength=len(first))
        own = next((np.where(k != NONE, k, keys[0]) for k in keys[3:]), keys[0])[
            ids
        ]  # a field's value is steadier than a prompt
        self.key = np.full(len(first), np.iinfo(np.int64).max)
        np.minimum.at(self.key, self.of, own)
        self.stratum = strata[ids][first]

    def order(self, groups: Codes, seed: int, salt: str) -> Codes:
        found: Codes = groups[np.argsort(scrambled(self.key[groups], seed, salt), kind="stable")]
        return found

    def drawn(self, groups: Codes, target: int, seed: int, salt: str) -> Codes:
        """Return those of `groups` that hold `target` rows, in the same share of every stratum."""
        order = self.order(groups, seed, salt)
        strata = np.unique(self.stratum[order])
        if len(strata) < 2:
            return take(self.sizes, order, target)
        within = [order[self.stratum[order] == s] for s in strata]
        held = np.array([self.sizes[g].sum() for g in within])
        wanted = target * held / max(held.sum(), 1)
        share = np.floor(wanted).astype(np.int64)
        more = np.argsort(-(wanted - share), kind="stable")[: target - int(share.sum())]
        share[more] += 1  # largest remainders
        chosen = [take(self.sizes, g, int(n)) for g, n in zip(within, share, strict=True) if n and len(g) > 1]
        return np.concatenate(chosen) if chosen else groups[:0]

    def folded(self, groups: Codes, folds: int, seed: int) -> Codes:
        """Return the fold of each group, (G,): the next group goes to the fold that has least of its stratum, and least in all."""
        fold = np.full(len(self.sizes), -1, dtype=np.int64)
        whole = [0] * folds
        by_stratum: dict[int, list[int]] = {}
        order = self.order(groups, seed, "fold")
        order = order[np.argsort(self.stratum[order], kind="stable")]
        for group, size, stratum in zip(
            order.tolist(), self.sizes[order].tolist(), self.stratum[order].tolist(), strict=True
        ):
            mine = by_stratum.setdefault(stratum, [0] * folds)
            to = min(range(folds), key=lambda f: (mine[f], whole[f], f))
            mine[to] += size
            whole[to] += size
            fold[group] = to
        return fold


def _keys(
    rows: Rows, stratify: str | None, fields: Sequence[str]
) -> tuple[Codes, list[Keys], tuple[Codes, Codes], Codes, list[str]]:
    """Return (the living ids, what ties each record to others, links to what it was made from, strata, the strata's names)."""
    count = len(rows.alive)
    ids = np.flatnonzero(rows.alive)
    keys = [np.full(count, NONE) for _ in range(3 + len(fields))]  # prompt, row of the file, cluster, fields
    strata, codes = np.full(count, -1, dtype=np.int64), dict[str, int]()
    links: list[tuple[int, int]] = []
    shown: dict[str, None] = {}
    for id_, record in rows:
        keys[0][id_] = prompt_hash(record)
        keys[1][id_] = hashed(record.origin.file, str(record.origin.row))
        for key, field in zip(keys[3:], fields, strict=True):
            if record.extra.get(field) is not None:
                key[id_] = hashed(field, str(record.extra[field]))
        if stratify is not None:
            strata[id_] = codes.setdefault(_stratum(record, stratify), len(codes))
        if id_ >= len(rows.records):
            made_from = rows.history(id_)[0].facts.get("from_") or []
            links += [(id_, made_from[0])] * (
                len(made_from) == 1
            )  # one of several is an example that was shown, no copy
        if len(shown) < 50:
            shown |= dict.fromkeys(record.extra)
    if "cluster" in rows.columns:
        cluster = rows.columns["cluster"]
        has = ~np.isnan(cluster)
        keys[2][has] = cluster[has].astype(np.int64)
    for key, field in zip(keys[3:], fields, strict=True):
        if (key == NONE).all():
            raise InputError(f'split.group_by names "{field}", a field that no row has.{did_you_mean(field, shown)}')
    _check_strata(stratify, codes, len(ids), shown)
    order = {code: new for new, (_, code) in enumerate(sorted(codes.items()))}
    table = np.array([order[c] for c in range(len(order))] + [-1], dtype=np.int64)
    both = np.array(links, dtype=np.int64).reshape(-1, 2)
    return ids, keys, (both[:, 0], both[:, 1]), table[strata], sorted(codes)


def _stratum(record: Record, field: str) -> str:
    if field in record.extra:
        return str(record.extra[field])
    if field != "label":
        return ""
    return ("good" if record.good else "bad") if isinstance(record, Verdict) else "".join(answer_texts(record)[-1:])


def _check_strata(stratify: str | None, codes: dict[str, int], count: int, shown: dict[str, None]) -> None:
    if stratify is not None and set(codes) <= {""}:
        raise InputError(f'split.stratify names "{stratify}", a field that no row has.{did_you_mean(stratify, shown)}')
    if len(codes) > max(_FEW, count // 2):
        raise InputError(
            f'split.stratify: "{stratify}" has {len(codes):,} different values in {count:,} rows; give a field with few.'
        )


def _leave_out(rows: Rows, groups: _Groups, side: Codes, train: float | None, seed: int) -> None:
    """Drop the rows that no split asks for."""
    if train is None:
        return
    free = np.flatnonzero(side == 0)
    target = _rows_for(train, len(groups.of), few=False)
    left = np.setdiff1d(free, groups.drawn(free, target, seed, "train"))
    ids = np.flatnonzero(rows.alive)
    for id_ in ids[np.isin(groups.of, left)].tolist():
        rows.drop(id_, f"left over: {target:,} rows were asked for to train on")


def _facts(
    rows: Rows,
    ids: Codes,
    column: npt.NDArray[np.float32],
    strata: Codes,
    names: list[str],
    stratify: str | None,
    groups: int,
    folds: int | None,
) -> dict[str, Any]:
    alive = ids[rows.alive[ids]]
    counts = np.bincount(column[alive].astype(np.int64), minlength=3).tolist()
    numbers = {name: n for name, n in zip(NAMES, counts, strict=True) if n} | {"groups": groups}
    listed = ", ".join(f"{n:,} {name}" for name, n in zip(NAMES, counts, strict=True) if n)
    tables = []
    if folds is not None:
        fold = rows.columns["fold"][alive]
        sizes = np.bincount(fold[~np.isnan(fold)].astype(np.int64), minlength=folds).tolist()
        tables.append(
            {
                "title": "Folds",
                "columns": ["fold", "rows validated"],
                "rows": [[f"fold-{i + 1}", n] for i, n in enumerate(sizes)],
            }
        )
        listed += f", in {folds} folds of {min(sizes):,} to {max(sizes):,}"
    if names and len(names) <= _FEW:
        table = [
            [n, *(int(((strata[alive] == c) & (column[alive] == s)).sum()) for s in range(3))]
            for c, n in enumerate(names)
        ]
        tables.append({"title": f"Splits by {stratify}", "columns": [str(stratify), *NAMES], "rows": table})
    return {
        "summary": f"{listed} ({groups:,} group{'s' * (groups != 1)} of what stays together)",
        "numbers": numbers,
        "tables": tables,
    }

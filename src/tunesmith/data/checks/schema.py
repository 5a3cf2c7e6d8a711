"""Fields that appear, vanish, change their type or are null: seen from how often each shape of row occurs, and where."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tunesmith.data.checks.found import Found, excerpt
from tunesmith.errors import did_you_mean

_MOST_SHAPES = 5000
_ENOUGH = 20
_FEW = 0.01
_NAMES = {
    str: "string",
    int: "number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "object",
    type(None): "null",
}


@dataclass(slots=True)
class _Field:
    """One field's or one of its types' occurrences: how many, and the first and last, as (index of the row, its number)."""

    count: int = 0
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)
    rows: tuple[int, ...] = ()

    def more(self, shape: "_Field") -> None:
        self.first = min(self.first, shape.first) if self.count else shape.first
        self.last = max(self.last, shape.last)
        self.rows = tuple(sorted({*self.rows, *shape.rows}))[:5]
        self.count += shape.count


class Schema:
    """Counts the shapes of a file's rows: their fields in order with the types of their values."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[Any, ...], _Field] = {}
        self._count = 0

    def see(self, number: int, row: dict[str, Any]) -> None:
        """Count a row as the file has it."""
        self._count += 1
        key = (*row, *map(type, row.values()))
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _MOST_SHAPES:
                return
            shape = self._shapes[key] = _Field(first=(self._count, number))
        shape.count += 1
        shape.last = (self._count, number)
        if shape.count <= 5:
            shape.rows = (*shape.rows, number)

    def fields(self) -> dict[str, dict[str, int]]:
        """Return {field: {type: rows}}, "missing" among the types."""
        out: dict[str, dict[str, int]] = {}
        for name, types in self._types().items():
            counts = {t: f.count for t, f in types.items()}
            missing = self._count - sum(counts.values())
            out[name] = counts | ({"missing": missing} if missing > 0 else {})
        return out

    def end(self, found: Found, used: tuple[str, ...] = ()) -> None:
        """Note the fields that are not the same in all rows; nothing of a set too small to tell. `used`: what the format reads."""
        if self._count < _ENOUGH or len(self._shapes) >= _MOST_SHAPES:
            return
        types = self._types()
        for name, kinds in types.items():
            whole = _Field()
            for part in kinds.values():
                whole.more(part)
            self._presence(name, whole, [n for n in types if n != name], found)
            self._change(name, kinds, found)
            nulls = kinds.get("null", _Field()).count
            if 0 < nulls <= max(1, int(_FEW * self._count)):
                for row in kinds["null"].rows:
                    message = f'"{name}" is null here, and is not in {whole.count - nulls:,} of {self._count:,} rows.'
                    found.add("absent_field", row, name, message)
            if nulls > whole.count / 2 and whole.count >= self._count / 2 and name not in used:
                found.add("null_column", None, name, f'"{name}" is null in {nulls:,} of {self._count:,} rows.')

    def _types(self) -> dict[str, dict[str, _Field]]:
        out: dict[str, dict[str, _Field]] = {}
        for key, shape in self._shapes.items():
            half = len(key) // 2
            for name, kind in zip(key[:half], key[half:], strict=True):
                out.setdefault(name, {}).setdefault(_NAMES.get(kind, kind.__name__), _Field()).more(shape)
        return out

    def _presence(self, name: str, field: _Field, others: list[str], found: Found) -> None:
        lacking = self._count - field.count
        if not lacking:
            return
        unbroken = field.last[0] - field.first[0] + 1 == field.count
        few = max(1, int(_FEW * self._count))
        if field.count <= few:
            near = did_you_mean(name, others)
            hint = near if "Did you mean" in near else ""
            for row in field.rows:
                found.add(
                    "stray_field",
                    row,
                    name,
                    f'only {field.count:,} of {self._count:,} rows have a field "{name}".{hint}',
                    None,
                )
        elif lacking <= few:
            for row in self._lacking(name):
                found.add(
                    "absent_field",
                    row,
                    name,
                    f'{lacking:,} of {self._count:,} rows have no field "{name}"; all others do.',
                )
        elif unbroken and field.first[0] > 1 and field.last[0] == self._count:
            found.add(
                "schema_drift",
                field.first[1],
                name,
                f'the field "{name}" appears first in this row, and is in all after it.',
            )
        elif unbroken and field.first[0] == 1:
            found.add(
                "schema_drift",
                field.last[1],
                name,
                f'the field "{name}" is in all rows up to this one, and in none after it.',
            )

    def _lacking(self, name: str) -> list[int]:
        rows = [r for key, shape in self._shapes.items() if name not in key[: len(key) // 2] for r in shape.rows]
        return sorted(rows)[:5]

    def _change(self, name: str, kinds: dict[str, _Field], found: Found) -> None:
        told = {k: f for k, f in kinds.items() if k != "null"}
        if len(told) < 2:
            return
        usual = max(told, key=lambda k: told[k].count)
        total = sum(f.count for f in told.values())
        for kind, field in told.items():
            if kind == usual:
                continue
            if field.count <= 0.05 * total:
                for row in field.rows:
                    found.add(
                        "type_drift",
                        row,
                        name,
                        f'"{name}" is a {kind} here, and a {usual} in {told[usual].count:,} rows.',
                    )
            elif field.first[0] > told[usual].last[0] or field.last[0] < told[usual].first[0]:
                row = max(field.first, told[usual].first)[1]
                found.add(
                    "type_drift",
                    row,
                    name,
                    f'"{name}" changes its type in this row (a {usual} in {told[usual].count:,} rows, a {kind} in {field.count:,}).',
                )


def most_common(counts: Counter[str], n: int = 10) -> str:
    """Return "a (12), b (3)"."""
    return ", ".join(f"{excerpt(k, width=30)} ({v:,})" for k, v in counts.most_common(n))

"""self_instruct: "instruction" and "instances", a list of {"input", "output"} (Wang et al., 2022, arXiv 2212.10560)."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import alpaca
from tunesmith.data.records import Origin, Record

RANK = 11
SHAPE = "instruction, instances"
FIELDS = ("instruction", "instances")
SIGNS = ("instances",)


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    return "has instruction and instances" if "instruction" in row and "instances" in row else None


def convert(row: dict[str, Any], origin: Origin) -> list[Record]:
    """Return one Chat for each instance, as Alpaca's."""
    extra = c.rest(row, FIELDS)
    made: list[Record] = []
    for i, instance in enumerate(c.objects(c.required(row, "instances", origin), "instances", origin, "instances")):
        one = {"instruction": c.text(row, "instruction", origin), **instance}
        try:
            chat = alpaca.convert(one, origin)
        except c.RowError as error:
            raise error.inside(f"instances[{i}]") from None
        chat.extra.update(extra)
        made.append(chat)
    return made

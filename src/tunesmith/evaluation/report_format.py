"""Numbers and names as people read them."""

import math
from collections.abc import Iterable

LESS_IS_BETTER = ("loss", "perplexity", "error", "bits", "bias")
UNBOUNDED = ("margin", "correlation")  # no shares, even where every value happens to lie in 0..1


def count(value: float | int | None) -> str:
    """Return an integer with thousands separators: 12,345; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def significant(value: float | None) -> str:
    """Return about three significant digits: 12,345, 81.2, 3.10, 0.904, 2.5e-5."""
    if value is None:
        return "–"
    size = abs(value)
    if value == 0:
        return "0"
    if size < 0.001 or size >= 1e9:
        return scientific(value, 2)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}"


def scientific(value: float, digits: int = 6) -> str:
    """Return 2e-4 rather than 0.0002, with at most `digits` decimals and none that are zero."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def percent(value: float | None, sign: bool = True) -> str:
    """Return a fraction as a whole percentage, with a decimal only where it would read as a false 0 or 100."""
    if value is None:
        return "–"
    scaled = 100 * value
    digits = 1 if 0 < scaled < 1 or 99 < scaled < 100 else 0
    return f"{scaled:.{digits}f}" + ("%" if sign else "")


def duration(seconds: float | None) -> str:
    """Return 8.4 s, 42 s, 3 min 05 s, 2 h 07 min or 3 d 04 h."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def byte_unit(largest: float) -> tuple[float, str]:
    """Return the bytes in, and the name of, the binary unit in which `largest` bytes read best."""
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest >= 1024**power:
            return 1024.0**power, name
    return 1.0, "bytes"


def memory(number_of_bytes: float | None) -> str:
    """Return 1.42 GiB, 512 MiB..."""
    if number_of_bytes is None:
        return "–"
    size, name = byte_unit(number_of_bytes)
    return f"{significant(number_of_bytes / size)} {name}"


def title(name: str) -> str:
    """Return 'Exact match' for exact_match, and 'Rule score' for rule."""
    words = "rule score" if name == "rule" else name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def less_is_better(metric: str) -> bool:
    """Return whether a smaller value of the metric is the better one, judged by its name."""
    return any(word in metric for word in LESS_IS_BETTER)


def is_fraction(metric: str, values: Iterable[float]) -> bool:
    """Return whether the metric reads as a percentage: more is better, and every value lies in 0..1."""
    return (
        not less_is_better(metric)
        and not any(word in metric for word in UNBOUNDED)
        and all(0 <= value <= 1 for value in values)
    )


def setting(value: object) -> str:
    """Return a setting of the run file as one would type it; a mapping that only holds a name is that name."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, list):
        return ", ".join(setting(item) for item in value)
    if isinstance(value, dict):
        pairs = [f"{key}: {setting(inner)}" for key, inner in value.items()]
        return setting(value["name"]) if list(value) == ["name"] else ", ".join(pairs)
    return scientific(value) if isinstance(value, float) and 0 < abs(value) < 0.001 else str(value)

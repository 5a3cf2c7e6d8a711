"""About how many requests and tokens a way of making rows takes at most, and what they cost: told before anything is asked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tunesmith.data.synthesis._rounds import Request, Rounds, Seed

_BYTES = 4  # of a token, about: letters of other scripts have more bytes, and more tokens


class Prices(NamedTuple):
    """{input, output} per million tokens of the model that writes and of the judge; None: not told."""

    writer: dict[str, float] | None
    judge: dict[str, float] | None


def estimate(
    way: Any, rounds: Rounds, seeds: Sequence[Seed], options: dict[str, Any], max_tokens: int, prices: Prices
) -> dict[str, Any]:
    """Return {"summary", "numbers"}; the first round of requests is looked at, not asked.

    What earlier answers add to later requests counts with max_tokens each.
    """
    first: list[Request] = [request for request in next(rounds, []) if not request.judge]
    rounds.close()
    calls = way.calls(seeds, **options)
    answered = calls * max_tokens
    size = sum(len(text.encode()) for request in first for _, text in request.messages) / max(len(first), 1) / _BYTES
    asked = round(calls * size) + way.quoted(seeds, **options) * max_tokens
    judged = way.judged(seeds, max_tokens, **options) if hasattr(way, "judged") else (0, 0, 0)
    whole = [sum(pair) for pair in zip((calls, asked, answered), judged, strict=True)]
    numbers: dict[str, float] = {
        "estimated requests": whole[0],
        "estimated tokens asked": whole[1],
        "most tokens answered": whole[2],
    }
    summary = f"about {whole[0]:,} requests with {whole[1]:,} tokens, and at most {whole[2]:,} tokens of answers"
    if judged[0]:
        numbers["of these requests to the judge"] = judged[0]
        summary += f" ({judged[0]:,} of the requests to the judge)"
    costs = [
        (tokens[1] * price["input"] + tokens[2] * price["output"]) / 1e6
        for tokens, price in zip(((calls, asked, answered), judged), prices, strict=True)
        if price is not None
    ]
    if costs:
        numbers["estimated cost"] = sum(costs)
        summary += f": at most about {numbers['estimated cost']:.2f}"
    return {"summary": summary, "numbers": numbers}

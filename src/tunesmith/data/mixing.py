"""Mixing: how many examples of each set an epoch takes, which ones, and in what order; pure functions of sizes, seed and epoch.

An example is a row; of a long text, each of its windows. An epoch never depends on how many processes or workers there are, nor on
the epochs before it: any of them can be made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tunesmith.errors import InputError

Indices = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

BUCKETS = 10


@dataclass(frozen=True, slots=True)
class Mixing:
    """The run file's `mixing`; each key left out changes nothing.

    temperature T: set i, of n_i examples (its cap, where that is less), has a share of the epoch in proportion to n_i^(1/T), which
    is n_i for 1 and the more even the larger T is; the epoch keeps its size (Raffel et al., 2020, section 3.5.2, of which `cap` is
    the limit K; Xue et al., 2021, mT5, whose exponent alpha is 1/T). general_share: the share of an epoch's tokens that come from
    the sets marked `general`, against forgetting (Scialom et al., 2022), beside all of one's own. curriculum: examples come from
    easy to hard within an epoch (Bengio et al., 2009), in ten equal parts, shuffled inside each; easy is short
    (length, in tokens), or a low number in the rows' field `score_field` (score), a high one with easiest: highest.
    """

    temperature: Annotated[float, Field(ge=1)] | None = None
    general_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    curriculum: Literal["length", "score"] | None = None
    score_field: Annotated[str, Field(min_length=1)] | None = None
    easiest: Literal["lowest", "highest"] | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one set asks for: each example `weight` times an epoch, at most `cap` in all; `general`: against forgetting."""

    weight: float = 1.0
    cap: int | None = None
    general: bool = False


def check(mixing: Mixing, shares: Sequence[Share], where: str) -> None:
    """InputError where a key excludes another, or would change nothing."""
    marked = [share.general for share in shares]
    weighted = next((i for i, share in enumerate(shares) if share.weight != 1), None)
    entry = f"data[{weighted}]" if len(shares) > 1 else "data"
    first = "data" if len(shares) == 1 else f"data[{marked.index(True)}]" if any(marked) else ""
    wrong = None
    if mixing.temperature is not None and len(shares) < 2:
        wrong = f"mixing.temperature mixes sets, but data names {len(shares) or 'none'}; add a set or take it away."
    elif mixing.temperature is not None and weighted is not None:
        wrong = f"mixing.temperature and {entry}.weight both say how often rows come; keep one."
    elif mixing.general_share is not None and not any(marked):
        wrong = "mixing.general_share needs a set of general data: mark it in data with general: true."
    elif mixing.general_share is not None and all(marked):
        wrong = "mixing.general_share is a share beside your own rows, but every set in data is marked general."
    elif mixing.general_share is not None and sum(marked) == 1 and shares[marked.index(True)].weight != 1:
        wrong = f"mixing.general_share and {first}.weight both say how much general data comes; keep the share."
    elif mixing.general_share is None and any(marked):
        wrong = f"{first} is marked general; say with mixing.general_share how much of an epoch that is, such as 0.1."
    elif mixing.curriculum == "score" and mixing.score_field is None:
        wrong = "mixing.curriculum: score needs mixing.score_field, the rows' field with a number to go by."
    elif mixing.curriculum != "score" and (mixing.score_field or mixing.easiest):
        key = "score_field" if mixing.score_field else "easiest"
        wrong = f"mixing.{key} belongs to mixing.curriculum: score."
    if wrong:
        raise InputError(f"{where}: {wrong}")


def amounts(sizes: Sequence[int], tokens: Sequence[int], shares: Sequence[Share], mixing: Mixing) -> Numbers:
    """Return how many examples of each set an epoch takes, (sets,), before they are rounded.

    sizes and tokens (sets,): the examples a set has to train on, and their tokens together. InputError where general_share asks
    for more than the general sets' caps allow.
    """
    caps = np.array([np.inf if share.cap is None else share.cap for share in shares])
    asked: Numbers = np.minimum([share.weight * size for share, size in zip(shares, sizes, strict=True)], caps)
    if mixing.temperature is None and mixing.general_share is None:
        return asked
    parts = asked if mixing.temperature is None else _softened(asked, mixing.temperature)
    if mixing.general_share is None:
        return _filled(parts, float(asked.sum()), caps, np.ones(len(parts)))
    general = np.array([share.general for share in shares], dtype=np.bool_)
    each = np.array(tokens) / np.maximum(sizes, 1)
    out = np.zeros(len(shares))
    out[~general] = _filled(parts[~general], float(asked[~general].sum()), caps[~general], np.ones(sum(~general)))
    wanted = float((out * each).sum()) * mixing.general_share / (1 - mixing.general_share)
    if wanted and not parts[general].any():
        raise InputError(
            "mixing.general_share: the sets marked general have no rows left to train on (they were held out, dropped or cut away); "
            "give more of them."
        )
    room = float((np.where(parts > 0, caps, 0) * each)[general].sum())
    if room < wanted:
        raise InputError(
            f"mixing.general_share {mixing.general_share:g} asks for {wanted:,.0f} tokens of general data an epoch, but the sets "
            f"marked general give {room:,.0f} at most (their cap); raise the cap or lower the share."
        )
    out[general] = _filled(parts[general], wanted, caps[general], each[general])
    return out


def _softened(sizes: Numbers, temperature: float) -> Numbers:
    """Return sizes^(1/T), nothing for nothing."""
    return np.where(sizes > 0, np.maximum(sizes, 1e-9) ** (1 / temperature), 0.0)


def _filled(parts: Numbers, total: float, caps: Numbers, each: Numbers) -> Numbers:
    """Return amounts in proportion to `parts` that come to `total`, one of set i counting each[i].

    One that would be above its cap is the cap, and the others take up what it leaves.
    """
    out, held = np.zeros(len(parts)), parts <= 0
    while not held.all():
        left = total - float((out * each)[held].sum())
        out[~held] = parts[~held] * left / float((parts * each)[~held].sum())
        over = ~held & (out > caps)
        if not over.any():
            break
        out[over], held = caps[over], held | over
    return out


def draw(examples: Indices, amount: float, index: int, seed: int, epoch: int) -> Indices:
    """Return about `amount` of set `index`'s `examples` for an epoch: all of them as often as possible, then some once more.

    Which ones is drawn from `seed`, and the next epoch takes the next ones, so that each is seen as often as any other in the
    long run. At least one, where there is one and the amount is not 0.
    """
    if not len(examples) or not amount:
        return examples[:0]
    whole, rest = divmod(amount, len(examples))
    more = max(round(rest), int(not whole))
    order = np.random.default_rng([seed, index]).permutation(len(examples))
    extra = examples[np.sort(order[(epoch * more + np.arange(more)) % len(examples)])]
    return np.concatenate([*[examples] * int(whole), extra])


def from_easy_to_hard(order: Indices, difficulty: npt.NDArray[Any]) -> Indices:
    """Return a shuffled `order` of examples in ten parts of equally many, easy to hard, each as shuffled as it was.

    difficulty (examples,): one number per example. Of examples equally hard those that come first go to the easier part.
    """
    rank = np.empty(len(order), dtype=np.int64)
    rank[np.argsort(difficulty[order], kind="stable")] = np.arange(len(order))
    easy_first: Indices = order[np.argsort(rank * BUCKETS // max(len(order), 1), kind="stable")]
    return easy_first

"""Evaluation rows found again in training data: an index of their runs of words, and what a record shares with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.data import minhash
from tunesmith.data.copies import NUMBERS, another_question
from tunesmith.data.ngrams import asked_and_answered, jaccard, runs, shingles, words
from tunesmith.data.records import Record, Text

FEWEST = 3  # words; what is shorter ("Continue.") says nothing of where it comes from
NEAR = 0.55  # of the words and pairs of words of two prompts: 15% of the words may be edited
NEAR_WORDS = 8  # different ones; in fewer one edited word asks another thing
TEMPLATE = 10  # a run in more rows of one evaluation file than this, and than 1% of them, is its template


class Index(NamedTuple):
    """hashes (H,) uint64, sorted, of the runs of words in evaluation rows; row (H,), the number of the first row each is of."""

    hashes: npt.NDArray[np.uint64]
    row: npt.NDArray[np.int64]
    n: int


def hashed(found: list[str]) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each text, the same in every process."""
    from rensa import RMinHash

    return np.array(RMinHash.hash_token_sets([found])[0], dtype=np.uint64)


def said(record: Record, n: int) -> Iterator[list[str]]:
    """Yield the words of a record's texts that are long enough to tell: a short prompt counts as a whole, a short answer not at all."""
    asked, answered = asked_and_answered(record)
    least = {asked: FEWEST} if asked else {}
    for text in answered:
        least.setdefault(text, FEWEST if isinstance(record, Text) else n)
    for text, fewest in least.items():
        found = [w for w in words(text) if w[0].isalnum()]
        if len(found) >= fewest:
            yield found


def runs_of(record: Record, n: int) -> npt.NDArray[np.uint64]:
    """Return the hashes of a record's runs, (R,); left out are runs of so few words that they are a table or a list of numbers."""
    return hashed([run for found in said(record, n) for run in runs(found, n) if _telling(run, n)])


def _telling(run: str, n: int) -> bool:
    return len(set(run.split(" "))) > min(n, run.count(" ") + 1) // 2


def index(records: Iterable[Record], n: int = 13) -> Index:
    """Return the index of one evaluation file's records, numbered from 0.

    Runs that many of its records share are left out, and those that begin or end with half a run that many share: they are the
    words in which the file asks, not what it asks.
    """
    half = n // 2
    parts = [np.empty((0, 4), dtype=np.uint64)]  # run, the halves it begins and ends with, number of the record
    for number, record in enumerate(records):
        for found in said(record, n):
            listed = runs(found, n)
            whole, halves = hashed(listed), hashed(runs(found, half))
            begins, ends = (halves[: len(whole)], halves[-len(whole) :]) if len(found) >= n else (whole, whole)
            kept = np.array([_telling(run, n) for run in listed])
            parts.append(np.stack([whole, begins, ends, np.full(len(whole), number, dtype=np.uint64)], axis=1)[kept])
    made = np.concatenate(parts)
    many = max(TEMPLATE, int(made[-1, 3] + 1) // 100 if len(made) else 0)
    own = np.ones(len(made), dtype=np.bool_)
    for column in range(3):
        own &= _records_with(made[:, column], made[:, 3]) <= many
    hashes, at = np.unique(made[own, 0], return_index=True)
    return Index(hashes, made[own, 3][at].astype(np.int64), n)


def _records_with(values: npt.NDArray[np.uint64], record: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return in how many records each value stands, (V,)."""
    codes = np.unique(values, return_inverse=True)[1]
    pairs = np.unique(codes.astype(np.int64) * (int(record.max(initial=0)) + 1) + record.astype(np.int64))
    counts = np.bincount(pairs // (int(record.max(initial=0)) + 1), minlength=1)
    return counts[codes]


def shared(record: Record, found: Index) -> tuple[npt.NDArray[np.int64], float]:
    """Return the evaluation rows that the record shares runs with, one entry per run, and the share of its runs that are shared."""
    mine = runs_of(record, found.n)
    if not len(mine) or not len(found.hashes):
        return np.empty(0, dtype=np.int64), 0.0
    at = np.minimum(np.searchsorted(found.hashes, mine), len(found.hashes) - 1)
    hit = found.hashes[at] == mine
    return found.row[at[hit]], float(hit.mean())


def question(record: Record) -> list[str]:
    """Return the words of what a record asks, without signs; of a Text all."""
    text = record.text if isinstance(record, Text) else asked_and_answered(record)[0]
    return [w for w in words(text) if w[0].isalnum()]


def asked_alike(a: list[str], b: list[str], template: frozenset[str]) -> float:
    """Return how far two questions overlap (Jaccard, the template left out), 0 where they ask for other things."""
    numbers = [{w for w in found if w[0].isdigit()} for found in (a, b)]
    if len(numbers[0] ^ numbers[1]) > 2 and jaccard(*numbers) < NUMBERS:
        return 0.0
    if min(len(set(a)), len(set(b))) < NEAR_WORDS or another_question(a, b) or another_question(b, a):
        return 0.0
    return jaccard(set(shingles(a)) - template, set(shingles(b)) - template)


def edited(
    tests: Sequence[Record], get: Callable[[int], Record], ids: Sequence[int], template: frozenset[str]
) -> Iterator[tuple[int, int, float]]:
    """Yield (id, number of the test, similarity) of the records that ask nearly what a test does, by their nearest test."""

    def sets() -> Iterator[list[str]]:
        for at in range(len(tests) + len(ids)):
            record = tests[at] if at < len(tests) else get(ids[at - len(tests)])
            found = [s for s in shingles(question(record)) if s not in template]
            yield found or [f"\0{at}"]

    sketch = minhash.signatures(sets(), len(tests) + len(ids))
    pairs, _ = minhash.candidates(sketch, NEAR, known=len(tests))
    for at, group in groupby(pairs.tolist(), key=itemgetter(1)):
        id_ = ids[at - len(tests)]
        asked = question(get(id_))
        value, test = max((asked_alike(asked, question(tests[t]), template), -t) for t, _ in group)
        if value >= NEAR:
            yield id_, -test, value

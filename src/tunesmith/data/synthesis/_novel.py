"""What is new: a text whose ROUGE-L with every one before is below a bound (Self-Instruct, Wang et al., 2023, section 3.2: 0.7)."""

from collections import Counter, defaultdict

from tunesmith.data.synthesis._check import words

BOUND = 0.7
_COMMON = 2000  # a word in more texts than this finds no candidates: nearly all have it


class Known:
    """Texts that are known; finds the one most like a new text among those that share enough words to reach the bound."""

    def __init__(self, bound: float = BOUND) -> None:
        self.bound = bound
        self.texts: list[list[str]] = []
        self.having: defaultdict[str, list[int]] = defaultdict(list)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """Return (number, ROUGE-L F1) of a known text at or above the bound, the nearest one; None where the text is new."""
        said = words(text)
        own, shared, everywhere = Counter(said), Counter[int](), 0
        for word, times in own.items():
            having = self.having.get(word, ())
            if len(having) <= _COMMON:
                for index in having:
                    shared[index] += times
            else:
                everywhere += times
        best: tuple[int, float] | None = None
        for index, count in shared.most_common(200):
            other = self.texts[index]
            if 2 * min(count + everywhere, len(other)) < self.bound * (len(said) + len(other)):
                continue  # a common subsequence has no more words than the two share
            score = rouge_l(said, other)
            if score >= self.bound and (best is None or score > best[1]):
                best = (index, score)
        return best

    def add(self, text: str) -> None:
        """Make a text known."""
        said = words(text)
        for word in set(said):
            self.having[word].append(len(self.texts))
        self.texts.append(said)


def rouge_l(a: list[str], b: list[str]) -> float:
    """Return the F1 of the longest common subsequence of words (Lin, 2004): 2 LCS / (|a| + |b|)."""
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))

"""Regression to ratings: each attribute's score is to be the number that people gave (Wang et al., 2024, HelpSteer2, arXiv 2406.08673).

    mean over the attributes k that are rated of (r_k - y_k)^2

Every answer counts the same. The attributes are the fields of a row that hold its ratings; without any named, the row's `score`, the
scores of a ranked list's answers, or 1 and 0 for good and bad.
"""

from torch import Tensor

from tunesmith.data.records import Chat, Preference, Verdict
from tunesmith.training.objectives._scores import Labelled

reads = (Chat, Preference, Verdict)
scores = "last"
compares = "answers"
model = "reward"
RATE = 1.0  # of SFT's learning rate: what is learnt is new, there is nothing that a large step would undo


def loss(scores: Labelled) -> Tensor:
    """Return the squared errors of the answers (A,), the mean over their ratings; 0 for one that has none."""
    rated = ~scores.labels.isnan()
    squares = (scores.scores - scores.labels.nan_to_num()) ** 2
    return squares.where(rated, 0.0).sum(1) / rated.sum(1).clamp(min=1)

"""What the losses of reward models see: scores of whole answers, beside which of them the data prefers or what it says of each."""

from typing import NamedTuple

from torch import Tensor


class ScorePairs(NamedTuple):
    """P pairs of answers to one prompt each, scored by C columns: a model's attributes, and behind them, where there are several, their
    weighted sum. chosen, rejected (P,C): scores, with gradients; sign (P,C): 1 where the data says of a column that the first is
    better, -1 that the second is, 0 that they tie, or nothing; margins (P,C): by how much, in the data's own units, else 0."""

    chosen: Tensor
    rejected: Tensor
    sign: Tensor
    margins: Tensor


class Labelled(NamedTuple):
    """A answers, scored by K attributes: scores (A,K), with gradients; labels (A,K): what the data says of each, NaN where nothing."""

    scores: Tensor
    labels: Tensor

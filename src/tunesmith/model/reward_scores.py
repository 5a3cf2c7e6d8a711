"""Scores of many answers: of rendered examples, and of conversations by the model's own template."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.data.records import Chat, Examples
from tunesmith.data.render import render
from tunesmith.model.reward import RewardPolicy
from tunesmith.training.answers import subset
from tunesmith.training.arrange import arrange
from tunesmith.training.batch import collate
from tunesmith.training.parallel import ALONE, World

Numbers = npt.NDArray[np.float64]


def score_examples(policy: RewardPolicy, examples: Examples, tokens: int = 4096, world: World = ALONE) -> Numbers:
    """Return the scores of the examples, (E,K), each read at its last token: in eval mode, without gradients, at most `tokens` tokens
    at a time, what examples begin with in common computed once. Each process scores a share, and all get all."""
    each = replace(
        examples,
        groups=np.arange(len(examples) + 1),
        answer=np.zeros(len(examples), dtype=np.int32),
        values=np.full(len(examples), np.nan, dtype=np.float32),
        constants={},
    )
    scores, device, training = (
        np.zeros((len(each), len(policy.attributes))),
        next(policy.parameters()).device,
        policy.training,
    )
    policy.eval()
    with torch.no_grad():
        arranged = arrange(each, np.arange(len(each)), tokens, link=policy.links, whole=False)
        for indices, clusters in arranged[world.rank :: world.size]:
            batch = collate(each, indices, clusters, policy.multiple)
            assert batch.answers is not None
            scores[batch.answers.rows] = policy(batch.to(device)).double().cpu().numpy()
    policy.train(training)
    world.sum_([torch.from_numpy(scores)])
    return scores


def score_chats(
    policy: RewardPolicy, tokenizer: Any, chats: Sequence[Chat], tokens: int = 4096
) -> tuple[Numbers, Numbers]:
    """Return the scores of the conversations' last answers, (n,K), and their weighted sums, (n,).

    NaN for a conversation without an answer, and for one that is longer than the model's context: a score is read at its end. The tokens
    are those of the model's whole template, as transformers' apply_chat_template gives them. InputError, naming the row, where the
    template refuses one.
    """
    config = policy.transformer.config
    examples, _ = render(chats, tokenizer, None, "last")
    examples = unpadded(examples, config.get_text_config().pad_token_id)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    fits = np.flatnonzero(examples.lengths <= (context or examples.lengths.max(initial=0)))
    examples = subset(examples, fits)
    scores = np.full((len(chats), len(policy.attributes)), np.nan)
    if len(examples):
        scores[examples.record] = score_examples(policy, examples, tokens)
    return scores, scores @ np.array([weight for _, weight in policy.attributes])


def unpadded(examples: Examples, padding: int | None) -> Examples:
    """Return the examples without the padding tokens that they end with: transformers reads a score at the last token that is none."""
    ends = np.flatnonzero(examples.ids[examples.offsets[1:] - 1] == (-1 if padding is None else padding))
    if not len(ends):
        return examples
    keep = np.ones(len(examples.ids), dtype=bool)
    for i in ends.tolist():
        start, at = int(examples.offsets[i]), int(examples.offsets[i + 1])
        while at - start > 2 and examples.ids[at - 1] == padding:
            at -= 1
        keep[at : examples.offsets[i + 1]] = False
    lengths = np.add.reduceat(keep, examples.offsets[:-1], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    scored = np.zeros(int(offsets[-1]), dtype=bool)
    scored[offsets[1:] - 1] = True
    return replace(examples, ids=examples.ids[keep], scored=scored, offsets=offsets)

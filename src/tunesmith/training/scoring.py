"""Scoring without training: the log-likelihood of each example under a policy."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.data.records import Examples
from tunesmith.model.policy import Policy
from tunesmith.training.arrange import arrange
from tunesmith.training.batch import collate
from tunesmith.training.parallel import ALONE, World


def example_nll(
    policy: Policy, examples: Examples, tokens: int = 4096, world: World = ALONE
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return (summed -log p in nats of each example's scored tokens (E,), how many those are (E,)).

    Runs in eval mode without gradients, at most `tokens` tokens at a time, and leaves the policy's mode as it was. Each process
    of the world scores a share of the batches that one would, so that the numbers are the same, and all get all numbers.
    """
    nll, count = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    device = next(policy.parameters()).device
    training = policy.training
    policy.eval()
    with torch.no_grad():
        arranged = arrange(examples, np.arange(len(examples)), tokens, link=policy.links)
        for indices, clusters in arranged[world.rank :: world.size]:
            batch = collate(examples, indices, clusters)
            logps = policy(batch.to(device)).double().cpu().numpy()
            np.subtract.at(nll, batch.target_example, logps)
            np.add.at(count, batch.target_example, 1)
    policy.train(training)
    world.sum_([torch.from_numpy(nll), torch.from_numpy(count)])
    return nll, count


def token_metrics(policy: Policy, examples: Examples, tokens: int, world: World = ALONE) -> dict[str, dict[str, Any]]:
    """Return {"validation_loss" (nats per scored token), "perplexity"} with 95% intervals over examples."""
    from tunesmith.evaluation.metrics import perplexity

    nll, count = example_nll(policy, examples, tokens, world)
    seen = count > 0
    found = perplexity.aggregate(nll[seen], count[seen].astype(float))
    loss = {k: v if k == "n" else math.log(v) for k, v in found.items()}
    return {"validation_loss": loss, "perplexity": found}

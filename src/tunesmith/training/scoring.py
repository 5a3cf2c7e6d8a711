"""Scoring without training: the log-likelihood of each example under a policy."""

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.data.records import Examples
from tunesmith.model.policy import Policy
from tunesmith.training.batch import collate, pack


def example_nll(
    policy: Policy, examples: Examples, tokens: int = 4096
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return (summed -log p in nats of each example's scored tokens (E,), how many those are (E,)).

    Runs in eval mode without gradients, at most `tokens` tokens at a time, and leaves the policy's mode as it was.
    """
    nll, count = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    device = next(policy.parameters()).device
    training = policy.training
    policy.eval()
    with torch.no_grad():
        for rows in pack(examples.lengths, tokens):
            batch = collate(examples, rows)
            logps = policy(batch.to(device)).double().cpu().numpy()
            owners = rows[np.argsort(-examples.lengths[rows], kind="stable")]
            segment = np.searchsorted(batch.cu_seqlens.numpy(), batch.target_index.numpy(), side="right") - 1
            np.subtract.at(nll, owners[segment], logps)
            np.add.at(count, owners[segment], 1)
    policy.train(training)
    return nll, count

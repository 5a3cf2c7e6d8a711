"""One step, or a few, of an objective named as a run file names it, over examples. (Not in builders.py: it needs the training loop.)"""

import numpy as np
import torch

from tunesmith.model.policy import make_policy
from tunesmith.model.reward import make_reward_policy
from tunesmith.model.reward_config import is_scorer
from tunesmith.training.guard import Guard
from tunesmith.training.loop import Loop
from tunesmith.training.make_objective import make
from tunesmith.training.masters import Masters
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.parallel import ALONE
from tunesmith.training.plan import Plan
from tunesmith.training.step import Stepper


def one_step(model, examples, section, microbatch_tokens=100, links=True, rows=None):
    """Return the loss, the gradients by name and the facts of a step over `rows` (None: all), and in how many micro-batches it was made.

    Plain descent at rate 1: each weight goes down by its gradient. links: whether what answers begin with runs once.
    """
    policy, _ = make_reward_policy(model) if is_scorer(model) else make_policy(model)
    policy.links = policy.links and links
    policy.train()
    masters, trained = Masters(policy.model), {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.SGD([{"params": list(masters.masters.values()), "ratio": 1.0}], lr=1.0)
    objective, guard = make(section), Guard(torch.device("cpu"), scaled=False)
    stepper = Stepper(policy, objective, masters, optimizer, guard, examples, microbatch_tokens, False, say=print)
    rows = np.arange(examples.rows) if rows is None else np.array(rows)
    batches = stepper.batches(rows)
    loss, _, verdict = stepper.step(rows, batches, objective.totals(examples, rows), 1.0, 1).tolist()
    assert verdict == 0
    facts = {name: float(value) for name, value in stepper.facts.items()}
    return loss, {n: before[n] - p.detach() for n, p in trained.items()}, facts, len(batches)


def plain_logps(model, examples):
    """Return the model's log-prob of every scored token, an array (n,) for each example, found one by one in float64."""
    model = model.double().eval()
    found = []
    for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        ids = torch.from_numpy(examples.ids[a:b].astype(np.int64))
        with torch.no_grad():
            logps = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
        found.append(logps[examples.scored[a + 1 : b]].numpy())
    return found


def train(run, model, examples, section, steps, microbatch_tokens=100, eps=1e-8, world=ALONE):
    """Make `steps` steps of eight rows in a run's folder with AdamW at a rate that falls from 1e-3; return the loop."""
    plan = Plan(
        steps=steps, tokens_per_step=None, batch_size=8, microbatch_tokens=microbatch_tokens, learning_rate=1e-3, schedule="linear",
        warmup=0, clip_norm=1.0, seed=0, evaluate_every=100, checkpoint_every=100, keep_last=1, early_stopping=None,
    )  # fmt: skip
    optimizer = lambda masters: adamw(masters, learning_rate=1e-3, eps=eps)  # noqa: E731
    every = np.arange(examples.rows)
    policy, _ = make_reward_policy(model) if is_scorer(model) else make_policy(model)
    loop = Loop(run, policy, make(section), examples, lambda _: every, plan, optimizer, dict, "data", world)
    loop.train()
    return loop

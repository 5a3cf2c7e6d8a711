"""AdaLoRA's part in every step: PEFT's importance and rank allocation over the fp32 masters, and the pull towards orthogonality."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.model.policy import Policy
from tunesmith.training.companions import Companion
from tunesmith.training.masters import Masters

PREFIX = "model.base_model.model."  # the policy's name of what PEFT's allocator knows without it


class Allocation(Companion):
    """The companion of an AdaLoRA model. tinit, tfinal and deltaT in steps; None is inferred from the run's.

    Working copies in bf16 have no gradients, their masters have: PEFT's own allocator is shown those, by its own names.
    """

    def __init__(self, adapted: Any, tinit: int | None, tfinal: int | None, deltaT: int | None) -> None:
        self.config, self.allocator = adapted.peft_config["default"], adapted.base_model.rankallocator
        self.kind = type(adapted.base_model)
        self.given = tinit, tfinal, deltaT
        self.masters: dict[str, Tensor] = {}
        self.final = False  # whether the last allocation was made
        self.told: dict[str, int] = {}  # the ranks last reported

    def check(self, steps: int) -> None:
        """InputError where the run is too short for the schedule; else PEFT's config holds it."""
        tinit, tfinal, every = self.given
        config = self.config
        config.total_step = steps
        config.tfinal = steps // 2 if tfinal is None else tfinal
        config.tinit = steps // 10 if tinit is None else tinit
        config.deltaT = max(1, steps // 100) if every is None else every
        if steps - config.tinit - config.tfinal < 2:
            raise InputError(
                f"adapter adalora: of the run's {steps} steps, tinit {config.tinit} and tfinal {config.tfinal} leave "
                f"{max(0, steps - config.tinit - config.tfinal)} to allocate ranks in, and 2 are needed; train longer, or lower them."
            )

    def begin(self, policy: Policy, masters: Masters, steps: int) -> str | None:
        """Take the masters and the schedule; return what the schedule is."""
        self.check(steps)
        self.masters = {n.removeprefix(PREFIX): m for n, m in masters.masters.items() if ".lora_" in n}
        c, a = self.config, self.allocator
        return (
            f"AdaLoRA: {a.init_bgt:,} ranks until step {c.tinit}, {a.target_bgt:,} from step {c.total_step - c.tfinal}, allocated every "
            f"{c.deltaT} step{'s' if c.deltaT > 1 else ''}"
        )

    def regularizer(self) -> Tensor | None:
        """Return orth_reg_weight times the mean over all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F (eq. 4), ()."""
        if not self.config.orth_reg_weight:
            return None
        terms = []
        for name, m in self.masters.items():
            if "lora_E" not in name:
                gram = m @ m.t() if "lora_A" in name else m.t() @ m
                terms.append(
                    torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
                )
        return self.config.orth_reg_weight * torch.stack(terms).mean()  # type: ignore[no-any-return]

    def after_step(self, step: int, rate: float, skipped: Tensor) -> dict[str, Any]:
        """Update importances, and mask where it is due; return "rank_budget" and, where they changed, "ranks" by layer."""
        if skipped.item():
            return {}
        last = self.config.total_step - self.config.tfinal
        if step >= last and not self.final:
            if not self.allocator.exp_avg_ipt:  # every step so far was skipped
                return {}
            step, self.final = last, True  # the step that was to be the last allocation may have been skipped
        self._allocate(step)
        budget, _ = self.allocator.budget_schedule(step)
        return {"rank_budget": budget, **self._ranks()}

    def _allocate(self, step: int) -> None:
        shown = SimpleNamespace(named_parameters=lambda: iter(self.masters.items()))
        view = SimpleNamespace(
            model=shown,
            peft_config={"default": self.config},
            trainable_adapter_name="default",
            rankallocator=self.allocator,
        )
        self.kind.update_and_allocate(view, step)

    def _ranks(self) -> dict[str, Any]:
        pattern = self.config.rank_pattern or {}
        ranks = {name.removesuffix(".default").removesuffix(".lora_E"): sum(kept) for name, kept in pattern.items()}
        if not ranks or ranks == self.told:
            return {}
        self.told = ranks
        return {"ranks": ranks}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the smoothed importances and their uncertainties, and which triplets are kept."""
        averages = {"importance": self.allocator.exp_avg_ipt, "uncertainty": self.allocator.exp_avg_unc}
        tensors = {f"{kind}/{name}": value for kind, of in averages.items() for name, value in of.items()}
        return tensors, {"final": self.final, "rank_pattern": self.config.rank_pattern, "told": self.told}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """The inverse of `state`."""
        a = self.allocator
        a.reset_ipt()
        for name, m in self.masters.items():
            if f"importance/{name}" in tensors:
                a.ipt[name] = torch.zeros_like(m)  # overwritten before it is read
                a.exp_avg_ipt[name] = tensors[f"importance/{name}"].to(m.device, copy=True)
                a.exp_avg_unc[name] = tensors[f"uncertainty/{name}"].to(m.device, copy=True)
        self.final, self.told = facts["final"], facts["told"]
        self.config.rank_pattern = facts["rank_pattern"]

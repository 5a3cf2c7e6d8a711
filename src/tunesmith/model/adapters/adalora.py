"""AdaLoRA (Zhang et al., 2023, arXiv 2303.10512): W + P diag(E) Q with a rank per matrix that training settles.

Every matrix begins with init_r triplets; between tinit and the last tfinal steps the least important ones of all matrices are masked
until target_r are left on average (eq. 12). Importance, allocation and file are PEFT's.
"""

import warnings
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import Alpha, Dropout, Rank, Targets, check_rank, chosen, left_out
from tunesmith.model.adapters._peft import ALL, wrap

RATE = 50.0  # E begins as zeros between small P and Q, so that its first steps move little: measured at widths 128 and 192, 10 to 300
Decay = Annotated[float, Field(gt=0, lt=1)]
Steps = Annotated[int, Field(ge=0)]


def attach(
    model: Any,
    *,
    init_r: Rank = 12,
    target_r: Rank = 8,
    alpha: Alpha | None = None,
    dropout: Dropout = 0.0,
    target_modules: Targets = ALL,
    layers_to_transform: list[int] | None = None,
    tinit: Steps | None = None,
    tfinal: Steps | None = None,
    deltaT: Annotated[int, Field(gt=0)] | None = None,
    beta1: Decay = 0.85,
    beta2: Decay = 0.85,
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5,
) -> Attached:
    """Attach triplets of rank init_r, and the companion that takes the least important ones away; alpha defaults to 2 init_r.

    tinit, tfinal: steps before the first and after the last allocation (a tenth and half of the run), deltaT: steps between
    allocations (a hundredth of the run). orth_reg_weight: how much P and Q are held orthogonal (eq. 4). InputError for a target_r
    that is not below init_r. Experts stacked in one parameter are left as they are.
    """
    from peft import AdaLoraConfig

    from tunesmith.model.adapters._allocation import Allocation

    if target_r >= init_r:
        raise InputError(
            f"adapter.target_r {target_r} is not below adapter.init_r {init_r}, from which ranks are taken away."
        )
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=init_r,
        target_r=target_r,
        lora_alpha=2 * init_r if alpha is None else alpha,
        lora_dropout=dropout,
        beta1=beta1,
        beta2=beta2,
        orth_reg_weight=orth_reg_weight,
        total_step=2**31,  # the companion is told the run's
        **chosen(model, target_modules, layers_to_transform),
    )
    adapted = wrap(model, config)
    for name, p in adapted.named_parameters():
        if ".ranknum." in name:  # a constant, which PEFT leaves trained on a model without weights
            p.requires_grad_(False)
    check_rank(adapted, init_r)
    adapted.save_pretrained = partial(_save, adapted)
    companion = Allocation(adapted, tinit, tfinal, deltaT)
    return Attached(adapted, companion=companion, notices=left_out(adapted, "AdaLoRA"))


def _save(adapted: Any, folder: Any, **arguments: Any) -> None:
    """Save as PEFT does: without the triplets that are masked, or with all of them where some have moved since (between allocations)."""
    config = adapted.peft_config["default"]
    pattern = config.rank_pattern
    singular = {n.removeprefix("base_model.model."): p for n, p in adapted.named_parameters() if ".lora_E." in n}
    exact = all(not p.detach()[[not k for k in (pattern or {})[n]]].any() for n, p in singular.items() if pattern)
    try:
        config.rank_pattern = dict(pattern) if pattern and exact else None  # PEFT renames what is in it
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* invalid shape")  # a matrix may have lost all its triplets
            type(adapted).save_pretrained(adapted, folder, **arguments)
    finally:
        config.rank_pattern = pattern

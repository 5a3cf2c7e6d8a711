"""LayerNorm tuning (Zhao et al., 2023, arXiv 2312.11420): the weights of the norms are trained, nothing else; PEFT's LNTuning."""

from typing import Any

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._peft import wrap

RATE = 10.0


def attach(model: Any, *, target_modules: list[str] | None = None) -> Attached:
    """Attach a trained copy of every norm (or of the modules that target_modules name); InputError for a model without norms."""
    from peft import LNTuningConfig

    found = target_modules or norms(model)
    if not found:
        raise InputError("adapter layernorm: this model has no norms; name the modules in adapter.target_modules.")
    return Attached(wrap(model, LNTuningConfig(task_type="CAUSAL_LM", target_modules=found)))


def norms(model: Any) -> list[str]:
    """Return the last names of the modules with weights whose class is a norm (RMSNorm, LayerNorm and the families' own), sorted."""
    normal = ((n, m) for n, m in model.named_modules() if type(m).__name__.endswith("Norm"))
    return sorted({n.rsplit(".", 1)[-1] for n, m in normal if any(True for _ in m.parameters(recurse=False))})

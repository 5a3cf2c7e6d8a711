"""(IA)3 (Liu et al., 2022, arXiv 2205.05638): keys, values and the feed-forward's inner activations are each scaled by a learned vector."""

from typing import Any

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._peft import linear_names, wrap

RATE = 300.0  # measured at widths 128 and 192, 100 to 1,000
SCALED = ("k_proj", "v_proj", "query_key_value", "qkv_proj", "c_attn", "Wqkv")  # scaled at their output
INNER = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj")  # scaled at their input, which is the inner activation


def attach(
    model: Any, *, target_modules: list[str] | None = None, feedforward_modules: list[str] | None = None
) -> Attached:
    """Attach a vector of ones to each target: to its output, or for feedforward_modules (among the targets) to its input.

    The default is the paper's: keys, values (one vector over a projection that makes queries too) and the feed-forward's last
    projection. InputError where a model names these otherwise and none is given.
    """
    from peft import IA3Config

    if target_modules is None:
        names = linear_names(model)
        there = [n for n in (*SCALED, *INNER) if n.rsplit(".", 1)[-1] in names]
        if not set(there) & set(SCALED):
            raise InputError(
                "adapter ia3: name the projections of keys and values in adapter.target_modules; this model's linear layers are "
                f"{', '.join(names)}."
            )
        target_modules = there + [n for n in feedforward_modules or [] if n not in there]
        feedforward_modules = [n for n in there if n in INNER] if feedforward_modules is None else feedforward_modules
    feedforward_modules = feedforward_modules or []
    other = next((n for n in feedforward_modules if n not in target_modules), None)
    if other is not None:
        raise InputError(f'adapter.feedforward_modules: "{other}" is not among adapter.target_modules.')
    config = IA3Config(task_type="CAUSAL_LM", target_modules=target_modules, feedforward_modules=feedforward_modules)
    return Attached(wrap(model, config))

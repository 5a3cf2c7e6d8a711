"""What an adapter's file will hold, known before training."""

from typing import Any

from tunesmith.model.new_tokens import PARAMETER
from tunesmith.model.stacking import BELOW

FP32 = 4  # bytes; adapters that are put together are written in it


def saved_bytes(model: Any, times: int = 1) -> int | None:
    """Return the bytes of the tensors that the adapter's folder will hold; None where the result is a whole model.

    times: how often the adapter's own tensors are written (PiSSA: twice, as they are and as they began); trained rows of tokens are once.
    """
    names = getattr(model, "peft_config", None)
    if names is None:
        return None
    rows = {n: p for n, p in model.named_parameters() if n.endswith(PARAMETER)}
    if hasattr(model, "adapters"):  # bottleneck, and rows alone
        return _bytes(model.adapters() | rows)
    from peft import get_peft_model_state_dict

    training = model.training
    model.eval()  # PEFT asks the encoder of virtual tokens, whose dropout would draw random numbers
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    model.train(training)
    if BELOW in names:
        below = get_peft_model_state_dict(model, adapter_name=BELOW, save_embedding_layers=False)
        return _stacked(tensors, below, times) + _bytes(rows)
    return times * _bytes(tensors) + _bytes(rows)


def _bytes(tensors: dict[str, Any]) -> int:
    return sum(int(t.numel()) * int(t.element_size()) for t in tensors.values())


def _stacked(own: dict[str, Any], below: dict[str, Any], times: int) -> int:
    """Return the bytes of both put together: every layer has the largest rank."""
    ranks: dict[str, int] = {}
    widths: dict[str, int] = {}
    for tensors, often in ((own, times), (below, 1)):
        for key, a in tensors.items():
            module, found, _ = key.partition(".lora_A")
            if found:
                ranks[module] = ranks.get(module, 0) + often * len(a)
                widths[module] = a.shape[1] + len(tensors[key.replace(".lora_A", ".lora_B")])
    return FP32 * max(ranks.values()) * sum(widths.values())

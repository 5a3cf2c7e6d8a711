"""A new adapter on an old one: `adapter: {name: lora, on: DIR, how: stack}`, or merged into the base first with `how: merge`.

stack: the old adapter stays frozen and switched on beside the new one, and the result is one plain adapter of the untouched base, their
A and B one after the other, of rank r1 + r2. merge: the base with the old adapter in it is a model of its own, kept beside the result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.model.adapters._attached import Attached

KEYS = ("on", "how")
HOWS = ("stack", "merge")
BELOW = "below"  # what the old adapter is called in the model; a new one is "default"


def split(adapter: Mapping[str, Any], where: str = "the run") -> tuple[dict[str, Any], dict[str, str]]:
    """Return the adapter's own section and what it says of an old adapter ({} or {"on", "how"}); InputError where that is wrong."""
    own = {k: v for k, v in adapter.items() if k not in KEYS}
    on, how = adapter.get("on"), adapter.get("how", "stack")
    if on is None:
        if "how" in adapter:
            raise InputError(
                f"{where}: adapter.how says how to begin on an old adapter; name its folder as adapter.on."
            )
        return own, {}
    if not isinstance(on, str):
        raise InputError(f"{where}: adapter.on should be an adapter's or a run's folder, found {on!r}.")
    if how not in HOWS:
        raise InputError(
            f"{where}: adapter.how should be one of {', '.join(HOWS)}, found {how!r}.{did_you_mean(str(how), HOWS)}"
        )
    return own, {"on": on, "how": how}


def check(model: Any, adapter: str, how: str, name: str, attached: Attached, quantize: Any) -> None:
    """InputError, before weights are loaded, where `adapter` cannot be below the new one.

    model: the base, on device "meta", called `name`. attached: the new adapter, on another such. quantize: how the base is to be held.
    """
    from tunesmith.model import adapter_files, into_base, merging

    adapter_files.check(adapter, model, name)
    if how == "merge":
        into_base.refuse_unmergeable(adapter)
        if quantize is not None:
            raise InputError(
                f"adapter.how: merge puts {adapter} into weights that model.quantize would round; say how: stack, or leave "
                "model.quantize out."
            )
        return
    merging.refuse_other_kinds(adapter, "say how: merge, which puts it into the base first")
    config = getattr(attached.model, "peft_config", {}).get("default")
    if config is None or config.peft_type != "LORA" or merging.beyond_plain(config.to_dict()):
        raise InputError(
            "adapter.how: stack needs a new adapter of LoRA's own kind (lora, rslora, lora+, pissa), for the result is one such adapter; "
            "say how: merge, which goes before any."
        )


def stacked(attached: Attached, adapter: str) -> Attached:
    """Return the new adapter, alone trained, with the old one of a folder frozen beside it; saved they are one."""
    model = attached.model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    model.load_adapter(adapter, adapter_name=BELOW, autocast_adapter_dtype=False)
    model.base_model.set_adapter([BELOW, "default"])
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    own_save = model.save_pretrained

    def save_pretrained(folder: str | Path, **arguments: Any) -> None:
        from tunesmith.model import merging

        own_save(folder, selected_adapters=["default"], **arguments)
        parts = [merging.read(adapter), merging.read(str(folder))]
        configs = [
            {**part.config, "base_model_name_or_path": parts[1].config["base_model_name_or_path"]} for part in parts
        ]
        merging.write(merging.combine(parts, [1.0, 1.0]), configs, Path(folder))

    model.save_pretrained = save_pretrained
    return attached

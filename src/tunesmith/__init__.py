"""tunesmith: fine-tune a language model, from raw data to a measured result.

    import tunesmith
    tunesmith.prepare("support.jsonl", {}, "prepared")
    result = tunesmith.train(model="starter", data="prepared", output="runs/support")
    tunesmith.evaluate("runs/support", data="held-out.jsonl")
    tunesmith.generate("runs/support", prompt="Hello")

Every function returns its result as a dict, keeps no state between calls and raises tunesmith.InputError where the input is wrong.
"""

from typing import TYPE_CHECKING, Any

from tunesmith.errors import GuardStop, InputError

if TYPE_CHECKING:
    from tunesmith.data.inspect import inspect
    from tunesmith.data.prepare import run as prepare
    from tunesmith.evaluation.evaluator import evaluate
    from tunesmith.merge_adapters import merge
    from tunesmith.model.inference import generate_text as generate
    from tunesmith.rewarding.rejection import sample
    from tunesmith.rewarding.scoring import score
    from tunesmith.training.api import train

__all__ = ["GuardStop", "InputError", "evaluate", "generate", "inspect", "merge", "prepare", "sample", "score", "train"]

_HOMES = {  # imported when first asked for: `import tunesmith` itself is instant
    "train": ("tunesmith.training.api", "train"),
    "evaluate": ("tunesmith.evaluation.evaluator", "evaluate"),
    "generate": ("tunesmith.model.inference", "generate_text"),
    "merge": ("tunesmith.merge_adapters", "merge"),
    "inspect": ("tunesmith.data.inspect", "inspect"),
    "prepare": ("tunesmith.data.prepare", "run"),
    "sample": ("tunesmith.rewarding.rejection", "sample"),
    "score": ("tunesmith.rewarding.scoring", "score"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    import importlib

    module, function = _HOMES[name]
    return getattr(importlib.import_module(module), function)

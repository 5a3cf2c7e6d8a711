"""What a run leaves: the trained model's folder, written beside and renamed."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import run
from tunesmith.model.loading import QUANTIZATION
from tunesmith.training import disk, reward_run

if TYPE_CHECKING:
    from tunesmith.training.prepare import Prepared


def save_result(prepared: "Prepared", policy: Any, opened: run.Run) -> Path:
    """Return the run's `result`: the policy's adapter or model, tokenizer, template, and how its base is quantised."""
    from tunesmith.model import new_tokens, token_files

    result, beside = opened.folder / "result", opened.folder / ".result.part"
    shutil.rmtree(beside, ignore_errors=True)
    own = opened.folder / "base"  # with an old adapter merged into it
    base = own if own.is_dir() else Path(prepared.source.base)
    for adapter in getattr(policy.model, "peft_config", {}).values():
        if base.is_dir():  # plain PEFT finds the base from any folder
            adapter.base_model_name_or_path = str(base.resolve())
    if prepared.rewards:
        reward_run.settle(prepared, policy, beside, opened)
    policy.eval()  # what an encoder with dropout says of its virtual tokens is saved
    rows = new_tokens.settle(policy.model)
    # rows of their own, or else PEFT would save the whole matrices beside them
    policy.model.save_pretrained(beside, **({"save_embedding_layers": False} if rows else {}))
    token_files.save(rows, policy.model, beside)
    how = prepared.source.quantize
    if how is not None:
        run.write_json(beside / QUANTIZATION, how.describe())
    prepared.tokenizer.save_pretrained(beside)
    for path in (*beside.rglob("*"), beside):
        disk.sync(path)
    shutil.rmtree(result, ignore_errors=True)
    disk.rename(beside, result)
    return result

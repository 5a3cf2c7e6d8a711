"""Prompt tuning (Lester et al., 2021, arXiv 2104.08691): embeddings of virtual tokens before the text are learned; PEFT's file format."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.model.adapters import _virtual
from tunesmith.model.adapters._attached import Attached

MERGES = False  # it adds tokens before the text and changes none of the model's weights
LEARNING_RATE = 0.3  # the paper's; measured at widths 32, 128 and 192, 0.03 to 3.8
TOKENS = 20


def attach(
    model: Any,
    *,
    tokens: Annotated[int, Field(gt=0)] | None = None,
    init: Literal["vocabulary", "random"] = "vocabulary",
    text: str | None = None,
) -> Attached:
    """Put `tokens` (20) virtual tokens before every sequence and train their embeddings; the model is frozen.

    They begin as the embeddings of a `text`, repeated or cut to `tokens` (default: as many as it has), as PEFT's TEXT has it; of random
    tokens of the vocabulary, which the paper found to learn better than random numbers; or as random numbers of deviation 1.
    """
    from peft import PromptTuningConfig

    ids = [] if text is None else _text_ids(model, text)
    tokens = tokens or len(ids) or TOKENS
    # PEFT's TEXT would load a tokenizer by a path that is stored in the file and may lead nowhere on the next machine.
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        token_dim=_virtual.width(model),
        prompt_tuning_init="SAMPLE_VOCAB" if init == "vocabulary" and not ids else "RANDOM",
    )
    attached = _virtual.wrap(model, config)
    if ids:
        _begin_with(attached.model, (ids * -(-tokens // len(ids)))[:tokens])
    return attached


def _text_ids(model: Any, text: str) -> list[int]:
    """Return the tokens of `text` by the tokenizer in the model's own folder (or hub repository)."""
    from tunesmith.model.loading import ModelSource, load_tokenizer

    folder = model.config._name_or_path
    if not folder:
        raise InputError("adapter.text needs the model's tokenizer, and this model was not loaded from a folder.")
    ids: list[int] = load_tokenizer(ModelSource(folder))[0](text).input_ids
    if not ids:
        raise InputError(f"adapter.text {text!r} has no tokens; write a few words, or leave it out.")
    return ids


def _begin_with(adapted: Any, ids: list[int]) -> None:
    import torch

    weight = adapted.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(adapted.word_embeddings(torch.tensor(ids, device=weight.device)))

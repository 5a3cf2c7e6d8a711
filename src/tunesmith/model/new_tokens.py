"""New tokens: the tokenizer and the vocabulary grow, and the rows of the new tokens are trained while all old ones stay.

A new token's row begins as the mean of the rows of the pieces the tokenizer made of it before (Gee et al., 2022, arXiv 2402.09977),
of the embedding and of an output layer of its own alike. The rows R (n,H) are parameters of their own beside the frozen matrix W
(V,H), which keeps their start: nothing ever copies W, and gradients, moments and masters have n rows.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith import registry
from tunesmith.errors import InputError
from tunesmith.model.adapters import trainable_tokens
from tunesmith.model.adapters._rate import factor

Rows = tuple[Tensor, Tensor]  # the tokens' ids (n,), ascending, and their rows (n,H)
PARAMETER = "trained_rows"
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""Letters of scripts that put no spaces between words, or endings right behind them: Thai to Khmer, Chinese, Japanese, Korean."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """ids: the tokens whose rows are trained, ascending. pieces: for each that is new what it was in tokens before, () where nobody
    knows. size: how many rows the vocabulary needs."""

    ids: tuple[int, ...] = ()
    pieces: tuple[tuple[int, tuple[int, ...]], ...] = ()
    size: int = 0


def extend(tokenizer: Any, texts: Sequence[str], rows: int) -> tuple[NewTokens, list[str]]:
    """Add tokens to the tokenizer, in place; return what the model of `rows` rows needs for it, and notices for people.

    A text that is one token already is not added: its row is trained from where it stands. Words are found as whole words only
    (not in scripts without spaces), other texts anywhere. They are no special tokens, so answers show them.
    """
    from tokenizers import AddedToken

    before = _size(tokenizer)
    cut = {text: tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts}
    known = [text for text, ids in cut.items() if len(ids) == 1 and ids[0] != tokenizer.unk_token_id]
    added = [text for text in texts if text not in known]
    words = {text: text.isalnum() and not UNSPACED.search(text) for text in added}
    tokenizer.add_tokens([AddedToken(t, single_word=words[t], normalized=False, special=False) for t in added])
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in added}
    pieces: dict[int, tuple[int, ...]] = dict.fromkeys(range(rows, before), ())
    pieces |= {
        i: tuple(p for p in cut[text] if p < rows and p != tokenizer.unk_token_id)
        for text, i in ids.items()
        if i >= min(rows, before)
    }
    trained = sorted({*pieces, *ids.values(), *(cut[text][0] for text in known)})
    size = _size(tokenizer)
    notices = []
    if added:
        grown = f"grows from {rows:,} to {size:,} rows" if size > rows else f"has room for them in its {rows:,} rows"
        notices.append(f"{len(added):,} new tokens: the vocabulary {grown}")
    if known:
        shown = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
        notices.append(f"model.new_tokens: already tokens, their rows are trained as they are: {shown}")
    if before > rows:
        said = f"the tokenizer had {before - rows:,} tokens more than the model's vocabulary of {rows:,} already; they get rows too"
        notices.append(said)
    if added and (shown := _shown(tokenizer, f"a {added[0]}, a")):
        notices.append(f'this tokenizer writes spaces around tokens that were added to it: "{shown}"')
    return NewTokens(tuple(trained), tuple(sorted(pieces.items())), max(size, rows)), notices


def _shown(tokenizer: Any, text: str) -> str:
    """Return what becomes of the text in tokens and back; nothing where it stays the same."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    again: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return "" if again.strip() == text else again


def _size(tokenizer: Any) -> int:
    """Return how many rows the tokenizer's ids need: ids may have holes."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def grow(model: Any, size: int) -> None:
    """Give the model's embedding and output layer at least `size` rows, also on device "meta"; new ones hold nothing of use."""
    if size > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(size, mean_resizing=False)


@torch.no_grad()
def begin(model: Any, new: NewTokens) -> None:
    """Grow the model's vocabulary and give every new token's rows the mean of its pieces' rows (of all old rows, where it has none)."""
    model = _base(model)
    old = len(model.get_input_embeddings().weight)
    grow(model, new.size)
    fresh = {i for i, _ in new.pieces}
    for layer in _layers(model):
        weight = layer.weight
        usual = None
        for i, pieces in new.pieces:
            if pieces:
                weight[i] = weight[list(pieces)].float().mean(0).to(weight.dtype)
                continue
            if usual is None:
                usual = weight[[r for r in range(old) if r not in fresh]].float().mean(0).to(weight.dtype)
            weight[i] = usual


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layers(model: Any) -> list[Any]:
    """Return the embedding, and the output layer where it has a matrix of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embedding] if head is None or head.weight is embedding.weight else [embedding, head]


def train_rows(model: Any, ids: Sequence[int]) -> int:
    """Make the rows of these tokens trained parameters of the model, also on device "meta"; return how many numbers that are.

    The model's own forward computes with them, with gradients; the vocabulary head asks `rows_of`. Nothing is done where the whole
    matrices are trained. InputError where an adapter has taken the embedding.
    """
    base = _base(model)
    layers, head = _layers(base), base.get_output_embeddings()
    if all(layer.weight.requires_grad for layer in layers):
        return 0
    for layer in layers:
        if not isinstance(layer, nn.Embedding | nn.Linear) or layer.weight.requires_grad:
            raise InputError(
                "model.new_tokens trains rows of the embedding and the output layer, which the adapter changes or trains already "
                f"({type(layer).__name__}); take them out of the adapter's targets."
            )
        _give_rows(layer, torch.tensor(sorted(ids), device=layer.weight.device))
    layers[0].forward = partial(_embed, layers[0], layers[0].forward)
    if head is not None:
        head.__dict__["rows_from"] = layers[-1]  # not as a module of it: a tied head has the embedding's
        head.forward = partial(_project, head, head.forward)
    if hasattr(model, "disable_adapter"):
        model.disable_adapter = partial(_disabled, model.disable_adapter, layers)
    return sum(layer.trained_rows.numel() for layer in layers)


def ratios(model: Any, method: str) -> dict[str, float]:
    """Return by the rows' names what the run's learning rate, of the adapter `method`, is multiplied by for them.

    So they have their own whatever is trained beside them: at prefix tuning's, hundreds of times as high, they would diverge.
    """
    beside = factor(registry.load("model.adapters", method), model.config.get_text_config().hidden_size)
    return {n: trainable_tokens.RATE / beside for n, _ in model.named_parameters() if n.endswith(PARAMETER)}


def _give_rows(layer: Any, ids: Tensor) -> None:
    weight = layer.weight
    layer.register_parameter(PARAMETER, nn.Parameter(weight.detach()[ids].clone()))
    layer.register_buffer("row_ids", ids, persistent=False)
    if isinstance(layer, nn.Embedding):  # which row a token has; n: none of them
        place = torch.full((len(weight),), len(ids), device=weight.device)
        place[ids] = torch.arange(len(ids), device=weight.device)
        layer.register_buffer("row_places", place, persistent=False)
    layer.rows_on = True


def _embed(layer: Any, own: Any, ids: Tensor) -> Tensor:
    out: Tensor = own(ids)
    if not layer.rows_on:
        return out
    places, rows = layer.row_places[ids], layer.trained_rows
    n = len(rows)
    # a last row for all other tokens, which takes no gradient
    found = F.embedding(places, torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), padding_idx=n)
    if (scale := getattr(layer, "embed_scale", None)) is not None:  # Gemma 3
        found = found * (scale.to(found.dtype) if isinstance(scale, Tensor) else scale)
    return torch.where((places < n)[..., None], found, out)


def _project(layer: Any, own: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = own(hidden)
    found = rows_of(layer)
    if found is None:
        return logits
    ids, rows = found
    bias = None if layer.bias is None else layer.bias[ids]
    return logits.index_copy(-1, ids, F.linear(hidden, rows, bias))


def rows_of(head: Any) -> Rows | None:
    """Return the trained rows of an output layer; None where it has none, or they are switched off."""
    owner = getattr(head, "rows_from", None)
    return (owner.row_ids, owner.trained_rows) if owner is not None and owner.rows_on else None


def whole_weight(head: Any) -> Tensor:
    """Return an output layer's matrix with its trained rows in their places, (V,H): a copy of it, with gradients to the rows."""
    found = rows_of(head)
    return head.weight if found is None else head.weight.index_copy(0, *found)  # type: ignore[no-any-return]


@contextmanager
def _disabled(own: Any, layers: list[Any]) -> Iterator[None]:
    before = [layer.rows_on for layer in layers]
    try:
        for layer in layers:
            layer.rows_on = False
        with own():
            yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.rows_on = on


@torch.no_grad()
def settle(model: Any) -> dict[str, Rows]:
    """Write the trained rows into the matrices, which makes the model a plain one again; return them by the matrix's module name."""
    base = _base(model)
    found: dict[str, Rows] = {}
    for name, layer in base.named_modules():
        if PARAMETER in layer._parameters:
            found[name] = (layer.row_ids.cpu(), layer.trained_rows.detach().clone().cpu())
            write(layer, *found[name])
    for layer in base.modules():
        if layer.__dict__.pop("rows_from", None) is not None or PARAMETER in layer._parameters:
            layer.forward = layer.forward.args[1]
        if PARAMETER in layer._parameters:
            del layer.trained_rows, layer.row_ids
    if found and "disable_adapter" in vars(model):
        del model.disable_adapter
    return found


@torch.no_grad()
def write(layer: Any, ids: Tensor, rows: Tensor) -> None:
    """Put rows into an embedding's or output layer's matrix."""
    layer.weight[ids.to(layer.weight.device)] = rows.to(layer.weight)

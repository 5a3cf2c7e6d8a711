"""What a batch of prompts need not compute: a prompt that several answers begin with again, and answers that are done.

Each prompt runs once, and its keys and values are copied to its answers. Where half of a batch's answers are done, the others go on
without them: answers to one prompt differ in length, and the longest would have all run to its end.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.model.decoding import Batch, Processors, Watch

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 8  # answers that run together, below which leaving some out saves nothing


def prefill(model: Any, config: Any, prompts: Sequence[Sequence[int]], ids: "Tensor", mask: "Tensor") -> Any | None:
    """Return a cache for transformers' generate to begin with: of all but the last token of left-padded prompts ids, mask (B,L).

    Each distinct one of `prompts` (B of them, unpadded) is computed once; `config` is the generation's. It is empty where no two are
    alike. None where the model keeps other states than keys and values, or keeps them in a way of its own.
    """
    import copy

    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    first: dict[tuple[int, ...], int] = {}
    places = [first.setdefault(tuple(prompt), len(first)) for prompt in prompts]
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    # a kind of cache that the model's own generation config names excludes one that is given; "hybrid" has no effect any more
    own = getattr(getattr(model, "generation_config", None), "cache_implementation", None)
    if not plain or own not in (None, "hybrid"):
        return None
    if len(first) == len(prompts) or ids.shape[1] < 2:
        return cache
    one = copy.deepcopy(config)
    one.max_new_tokens = 1  # generate itself fills the cache: it knows the model's positions and masks
    rows = torch.tensor([places.index(number) for number in range(len(first))], device=ids.device)
    model.generate(
        input_ids=ids[rows, :-1], attention_mask=mask[rows, :-1], past_key_values=cache, generation_config=one,
        **_without_router_loss(model),
    )  # fmt: skip
    cache.batch_select_indices(torch.tensor(places, device=ids.device))
    return cache


def answer(
    model: Any,
    config: Any,
    batch: Batch,
    ids: "Tensor",
    mask: "Tensor",
    cache: Any,
    processors: Processors,
    watch: Watch,
) -> list[list[int]]:
    """Return the new tokens of a batch of left-padded prompts ids, mask (B,L), row by row, from a cache that prefill returned."""
    import torch

    width, pads = ids.shape[1], (mask == 0).sum(1)
    found: list[list[int]] = [[] for _ in batch.rows]
    here = list(range(len(batch.rows)))
    while True:
        config.max_new_tokens = batch.limit - (ids.shape[1] - width)
        some = Batch([batch.rows[i] for i in here], batch.limit)
        thin = _Thin(watch.of(some), config.eos_token_id or [], len(here))
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            logits_processor=processors.build(some, pads, width),
            stopping_criteria=[thin],
            **_without_router_loss(model),
        )
        for i, new in zip(here, ids[:, width:].tolist(), strict=True):
            found[i] = new
        left = [row for row, done in enumerate(thin.done) if not done]
        if not left or ids.shape[1] - width >= batch.limit:
            return found
        keep = torch.tensor(left, device=ids.device)
        cache.batch_select_indices(keep)
        ids, pads, here = ids[keep], pads[keep], [here[row] for row in left]
        mask = torch.nn.functional.pad(mask[keep], (0, ids.shape[1] - mask.shape[1]), value=1)


def _without_router_loss(model: Any) -> dict[str, bool]:
    """Return what keeps a mixture from its routers' loss, which transformers cannot compute of new tokens beside a mask of all."""
    asked = getattr(model.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if asked else {}


class _Thin:
    """A stopping criterion: what `watch` says, and the whole batch once half of its answers are done. `done`, per answer."""

    def __init__(self, watch: Watch, ends: Sequence[int], count: int) -> None:
        self.watch, self.ends, self.done = watch, set(ends), [False] * count

    def __call__(self, input_ids: "Tensor", scores: Any, **_: Any) -> "Tensor":
        import torch

        stopped = self.watch(input_ids, scores).tolist()
        last = input_ids[:, -1].tolist()
        self.done = [d or s or t in self.ends for d, s, t in zip(self.done, stopped, last, strict=True)]
        half = len(self.done) >= FEWEST and sum(self.done) * 2 >= len(self.done)
        return torch.tensor([half or d for d in self.done], device=input_ids.device)

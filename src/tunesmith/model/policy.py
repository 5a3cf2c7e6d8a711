"""The policy: a causal language model whose forward maps a flat batch to the log-probabilities of its targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model import attention
from tunesmith.model.head import target_logps
from tunesmith.training.batch import FlatBatch


class Policy(nn.Module):
    """Wraps a transformers causal LM (or PeftModel). `flat` False runs segments padded through the model's own forward.

    `window`: a batch with a longer segment runs padded too, for flat attention has no window. `own` is the model's own attention.
    """

    def __init__(self, model: Any, flat: bool = True, window: int | None = None, own: str = "sdpa") -> None:
        super().__init__()
        self.model = model
        self.flat, self.window, self.own = flat, window, own

    @property
    def transformer(self) -> Any:
        """The transformers model itself, whatever is wrapped around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: FlatBatch) -> Tensor:
        """Return log p(target) for every target of the batch, float32, (N,)."""
        if self.flat and max(batch.lengths) <= (self.window or max(batch.lengths)):
            return self._flat(batch)
        with self._own_attention():
            return self._padded(batch)

    def _flat(self, batch: FlatBatch) -> Tensor:
        model = self.transformer
        segments = attention.plan(batch.lengths, batch.cu_seqlens)
        trunk = model.get_decoder()
        hidden = trunk(
            input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False, segments=segments
        ).last_hidden_state[0]
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ValueError("its output layer has a bias")
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return target_logps(hidden[batch.target_index], head.weight, batch.target_ids, cap)

    def _padded(self, batch: FlatBatch) -> Tensor:
        """Segments at least half as long as the longest run together, so that padding never more than doubles a batch."""
        logps, first, start = [], 0, 0
        while first < len(batch.lengths):
            longest = batch.lengths[first]
            lengths = [n for n in batch.lengths[first:] if 2 * n >= longest]  # they come longest first
            stop = start + sum(lengths)
            mask = torch.arange(longest, device=batch.ids.device)[None] < batch.ids.new_tensor(lengths)[:, None]
            ids = batch.ids.new_zeros(mask.shape).masked_scatter_(mask, batch.ids[start:stop])
            mine = (batch.target_index >= start) & (batch.target_index < stop)
            logits = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask]
            logits = logits[batch.target_index[mine] - start]
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            logps.append(torch.log_softmax(logits.to(wide), -1).gather(1, batch.target_ids[mine][:, None])[:, 0])
            first, start = first + len(lengths), stop
        return torch.cat(logps)

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within it the model attends as transformers would by itself (for generation with a cache), without gradients, in eval mode."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), self._own_attention():
                yield
        finally:
            self.train(training)

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        if not self.flat:
            yield
            return
        self.transformer.set_attn_implementation(self.own)
        try:
            yield
        finally:
            self.transformer.set_attn_implementation("flat")


def make_policy(model: Any) -> tuple[Policy, str]:
    """Return the policy and a sentence on how it runs: flat where a probe shows that to be exact, padded otherwise.

    The probe compares the log-probs of two random segments, the longer beyond any attention window up to 1,024 tokens, laid end
    to end, with the model's own forward on each alone. How far rounding alone takes log-probs differs from model to model, so it is
    measured: on average at most 3 times as far as the model is from itself under transformers' eager attention (plus 1e-5 in
    fp32, 0.01 in bf16, for models whose own rounding is nothing).
    """
    attention.register()
    padded = Policy(model, flat=False)
    config, original = padded.transformer.config.get_text_config(), padded.transformer.config._attn_implementation
    window = getattr(config, "sliding_window", None) or 0
    policy = Policy(model, window=window or None, own=original)
    limit = getattr(config, "max_position_embeddings", None) or 64
    lengths = (min(max(64, window + 8), limit, 1024), min(17, limit))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (sum(lengths),), generator=generator).to(next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad():
        why = _difference(policy, padded, ids, lengths)
    model.train(training)
    if not why:
        return policy, "flat batches, no padding: a probe found them exact for this model"
    policy.transformer.set_attn_implementation(original)
    return padded, f"padded batches: flat ones are not exact for this model ({why})"


def _difference(policy: Policy, padded: Policy, ids: Tensor, lengths: tuple[int, ...]) -> str:
    """Return why the flat forward cannot be used, or nothing; leaves the model's attention flat."""

    def alone() -> Tensor:
        return torch.cat([padded(_probe_batch(part, (len(part),))) for part in ids.split(list(lengths))])

    wanted = alone()
    rough = next(policy.parameters()).dtype in (torch.bfloat16, torch.float16)
    try:
        policy.transformer.set_attn_implementation("eager")
        allowed = 3 * float((alone() - wanted).abs().mean()) + (0.01 if rough else 1e-5)
        policy.transformer.set_attn_implementation("flat")
        found = float((policy._flat(_probe_batch(ids, lengths)) - wanted).abs().mean())
        if not found <= allowed:
            return f"log-probs differ by {found:.2g}, {allowed:.2g} is rounding"
        policy.transformer.train()  # what training alone asks for, attention dropout say, is refused now and not at the first step
        policy._flat(_probe_batch(ids, lengths))
    except (ValueError, AttributeError, TypeError, RuntimeError) as e:
        return str(e).splitlines()[0]
    return ""


def _probe_batch(ids: Tensor, lengths: tuple[int, ...]) -> FlatBatch:
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    positions = torch.cat([torch.arange(n) for n in lengths])
    targets = (positions > 0).nonzero()[:, 0].to(ids.device)
    return FlatBatch(
        ids=ids,
        positions=positions.to(ids.device),
        cu_seqlens=starts.to(ids.device, torch.int32),
        target_index=targets - 1,
        target_ids=ids[targets],
        weights=torch.ones(len(targets), device=ids.device),
        lengths=lengths,
    )

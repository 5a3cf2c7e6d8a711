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
    """Wraps a transformers causal LM (or PeftModel). `flat` False runs segments padded through the model's own forward."""

    def __init__(self, model: Any, flat: bool = True) -> None:
        super().__init__()
        self.model = model
        self.flat = flat

    @property
    def transformer(self) -> Any:
        """The transformers model itself, whatever is wrapped around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: FlatBatch) -> Tensor:
        """Return log p(target) for every target of the batch, float32, (N,)."""
        return self._flat(batch) if self.flat else self._padded(batch)

    def _flat(self, batch: FlatBatch) -> Tensor:
        model = self.transformer
        segments = attention.plan(batch.lengths, batch.cu_seqlens)
        trunk = model.get_decoder()
        hidden = trunk(
            input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False, segments=segments
        ).last_hidden_state[0]
        head = model.get_output_embeddings()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return target_logps(hidden[batch.target_index], head.weight, batch.target_ids, cap)

    def _padded(self, batch: FlatBatch) -> Tensor:
        longest = max(batch.lengths)
        lengths = torch.tensor(batch.lengths, device=batch.ids.device)
        mask = torch.arange(longest, device=batch.ids.device)[None] < lengths[:, None]
        ids = batch.ids.new_zeros(mask.shape).masked_scatter_(mask, batch.ids)
        logits = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask][batch.target_index]
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return torch.log_softmax(logits.to(wide), -1).gather(1, batch.target_ids[:, None])[:, 0]

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within it the model attends as transformers would by itself (for generation with a cache), without gradients, in eval mode."""
        model, training = self.transformer, self.training
        if self.flat:
            model.set_attn_implementation("sdpa")
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)
            if self.flat:
                model.set_attn_implementation("flat")


def make_policy(model: Any) -> tuple[Policy, str]:
    """Return the policy and a sentence on how it runs: flat where a probe shows that to be exact, padded otherwise.

    The probe compares the log-probs of two random segments, the longer beyond any attention window up to 1,024 tokens,
    laid end to end, with the model's own forward on each alone: at most 1e-4 apart in fp32, 0.1 on average in bf16.
    """
    attention.register()
    policy = Policy(model)
    config = policy.transformer.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    limit = getattr(config, "max_position_embeddings", None) or 64
    lengths = (min(max(64, window + 8), limit, 1024), min(17, limit))
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    ids = torch.randint(0, config.vocab_size, (sum(lengths),), generator=generator).to(device)
    batch = _probe_batch(ids, lengths)
    padded = Policy(model, flat=False)
    training = model.training
    model.eval()
    original = policy.transformer.config._attn_implementation
    with torch.no_grad():
        wanted = torch.cat([padded(_probe_batch(part, (len(part),))) for part in ids.split(list(lengths))])
        try:
            policy.transformer.set_attn_implementation("flat")
            got = policy(batch)
            gap = (got - wanted).abs()
            exact = next(model.parameters()).dtype != torch.bfloat16
            why = (
                ""
                if (gap.max() < 1e-4 if exact else gap.mean() < 0.1)
                else f"log-probs differ by {float(gap.max()):.2g}"
            )
        except (ValueError, AttributeError, TypeError, RuntimeError) as e:
            why = str(e).splitlines()[0]
    model.train(training)
    if not why:
        return policy, "flat batches, no padding: a probe found them exact for this model"
    policy.transformer.set_attn_implementation(original)
    return padded, f"padded batches: flat ones are not exact for this model ({why})"


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

"""The policy: a causal language model whose forward maps a flat batch to the log-probabilities of its targets."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.model import attention, probe, router
from tunesmith.model.attention import Segments
from tunesmith.model.head import target_logps
from tunesmith.model.layout import halves, lay_out, moved, sequence_lengths
from tunesmith.training.batch import FlatBatch

FILL = 64  # tokens; a CPU compiles every product of a new shape, and compiled layers are spared odd remainders


class Policy(nn.Module):
    """Wraps a transformers causal LM (or PeftModel). `make_policy` finds out how a model can be run:

    flat: segments end to end, nothing padded. Otherwise rows are padded at their ends and run under the model's own attention
    `own`. trunk: the decoder's hidden states and the output layer's weights give the log-probs, at scored positions only;
    otherwise the model's own forward gives all logits.

    The routers' load-balancing loss, where the model's config asks for it (`policy.router` is not None), is of the whole step
    (tunesmith.model.router), so a step of several micro-batches or processes runs two passes:

        if policy.router is not None:                          # None: nothing to do
            policy.router_load = None                          # a step of one micro-batch on one process: no first pass
            if several:                                        # micro-batches or processes
                policy.router_load = policy.router_counts(batches)    # (E+1,) int64, to be summed over the processes
        for batch in batches:                                  # in the same order
            loss = objective(policy(batch), batch.weights) / scored
            auxiliary = policy.take_auxiliary()                # None without a router loss, or in eval mode
            (loss if auxiliary is None else loss + auxiliary).backward()

    The micro-batches' auxiliaries, not divided by anything, add up over micro-batches and processes to transformers' auxiliary
    loss, its coefficient included, over the step's rows: padding never counts, a shared prefix once for each row that has it, so
    that links change the loss no more than packing does.
    """

    def __init__(self, model: Any, flat: bool = True, own: str = "sdpa", trunk: bool = True) -> None:
        super().__init__()
        self.model = model
        self.flat, self.own, self.trunk = flat, own, trunk
        self.multiple = 1  # of tokens that batches should have
        self.router = router.of(self.transformer.config)
        self.router_load: Tensor | None = None
        self._routed: list[tuple[Tensor, Tensor]] = []
        self._turn = _rope_turn(self.transformer.config.get_text_config())

    def fill_up(self) -> None:
        """Ask for batches of a multiple of FILL tokens, where what fills them up changes nothing: a router would route it."""
        if self.flat and self.router is None:
            self.multiple = FILL

    @property
    def transformer(self) -> Any:
        """The transformers model itself, whatever is wrapped around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _decoder(self) -> Any:
        """The transformers model without its output layer."""
        found = self.transformer.get_decoder()
        return found if found is not self.transformer else found.model  # Llama 4 does not find its own

    def forward(self, batch: FlatBatch) -> Tensor:
        """Return log p(target) for every target of the batch, float32, (N,)."""
        self._routed.clear()
        if not self.trunk:
            return self._whole(batch)
        return self._logps(self._hidden(batch), batch.target_ids)

    def _hidden(self, batch: FlatBatch) -> Tensor:
        """Return the hidden state that predicts each target, (N,H)."""
        if not self.flat:
            place, parts = self._padded(batch, self._decoder, "last_hidden_state")
            return torch.cat(list(parts))[place]
        if self._turn is None or not self._mixed(batch, self._turn):
            hidden = self._end_to_end(batch.ids, batch.positions, batch.segments, batch.lengths, batch.parents)
            return hidden[batch.target_index]
        return self._in_halves(batch, self._turn)

    def _in_halves(self, batch: FlatBatch, turn: int) -> Tensor:
        """Run the sequences of at most `turn` tokens and the longer ones apart; (N,H)."""
        device, place, begun = batch.ids.device, np.zeros(len(batch.ids), dtype=np.int64), 0
        hidden: list[Tensor] = []
        for half in halves(batch.lengths, batch.parents, turn):
            tokens = moved(torch.from_numpy(half.tokens), device)
            ends = torch.from_numpy(np.cumsum([0, *half.lengths], dtype=np.int32))
            segments = attention.plan(half.lengths, ends, half.parents).to(device)
            ids, positions = batch.ids[tokens], batch.positions[tokens]
            hidden.append(self._end_to_end(ids, positions, segments, half.lengths, half.parents))
            place[half.tokens] = begun + np.arange(len(half.tokens))
            begun += len(half.tokens)
        return torch.cat(hidden)[moved(torch.from_numpy(place), device)[batch.target_index]]

    def _end_to_end(
        self, ids: Tensor, positions: Tensor, segments: Segments, lengths: tuple[int, ...], parents: tuple[int, ...]
    ) -> Tensor:
        """Return the hidden states of segments laid end to end, (T,H)."""
        often = None if self.router is None else router.multiplicity(lengths, parents)
        inputs = {"input_ids": ids[None], "position_ids": positions[None], "segments": segments}
        return self._run(self._decoder, often, **inputs).last_hidden_state[0]  # type: ignore[no-any-return]

    def _whole(self, batch: FlatBatch) -> Tensor:
        """Return the log-probs by the model's own forward, which gives the logits of every position."""
        place, parts = self._padded(batch, self.model, "logits")
        order, logps, start = [], [], 0
        for logits in parts:
            mine = ((place >= start) & (place < start + len(logits))).nonzero()[:, 0]
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            chosen = torch.log_softmax(logits[place[mine] - start], -1, dtype=wide)
            logps.append(chosen.gather(1, batch.target_ids[mine][:, None])[:, 0])
            order.append(mine)
            start += len(logits)
        return torch.cat(logps)[torch.argsort(torch.cat(order))]

    def _padded(self, batch: FlatBatch, module: nn.Module, output: str) -> tuple[Tensor, Iterator[Tensor]]:
        """Return where each target's row is among the outputs, and the outputs of each group's own tokens."""
        groups, place = lay_out(batch.lengths, batch.parents, self._turn)
        device = batch.ids.device

        def run() -> Iterator[Tensor]:
            for rows in (g.to(device) for g in groups):
                mask = rows.real.long()
                outputs = self._run(module, mask.flatten(), input_ids=batch.ids[rows.take], attention_mask=mask)
                yield getattr(outputs, output).flatten(0, 1)[rows.own]

        return moved(torch.from_numpy(place), device)[batch.target_index], run()

    def _run(self, module: nn.Module, often: Tensor | None, **inputs: Any) -> Any:
        """Run the model or its trunk, and note where its routers send each token, which counts so `often` (None: once)."""
        outputs = module(**inputs, use_cache=False)
        if self.router is not None and self.training:
            logits = outputs.router_logits  # transformers records them where the config asks for their loss
            often = None if often is None else moved(often, logits[0].device)
            self._routed.append((self.router.counts(logits, often), self.router.probabilities(logits, often)))
        return outputs

    def _logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        head = self.transformer.get_output_embeddings()
        config = self.transformer.config.get_text_config()
        weight, bias = head.weight, getattr(head, "bias", None)
        if bias is not None:  # a column of the weights, for an input that is always 1
            hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
            weight = torch.cat([weight, bias[:, None]], 1)
        scale = _logit_scale(config)
        if scale != 1:
            hidden = hidden * scale
        return target_logps(hidden, weight, targets, getattr(config, "final_logit_softcapping", None))

    @staticmethod
    def _mixed(batch: FlatBatch, turn: int) -> bool:
        """Whether a sequence of the batch runs beside one that is beyond the length at which the model's rotary frequencies change.

        What fills the batch up may have the wrong frequencies itself; it must not give them to others.
        """
        totals = sequence_lengths(batch.lengths, batch.parents)
        filling = len(batch.lengths) - 1 if batch.padding else None
        return min(n for s, n in totals.items() if s != filling) <= turn < max(totals.values())

    def take_auxiliary(self) -> Tensor | None:
        """Return the last forward's share of the step's router loss, (), once; None where there is none."""
        if self.router is None or not self._routed:
            return None
        counts, probabilities = (torch.stack(parts).sum(0) for parts in zip(*self._routed, strict=True))
        self._routed.clear()
        return self.router.loss(counts if self.router_load is None else self.router_load, probabilities)

    @torch.no_grad()
    def router_counts(self, batches: Iterable[FlatBatch]) -> Tensor:
        """Return how many tokens go to each expert, and how many are routed, over `batches`: (E+1,) int64, to be summed over processes.

        A forward without the head. The random state is left as it was, so that a second pass over the same batches in the same
        order draws the same dropout.
        """
        total: Tensor | None = None
        device = next(self.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for batch in batches:
                self._routed.clear()
                self._hidden(batch) if self.trunk else self._whole(batch)
                for counts, _ in self._routed:
                    total = counts if total is None else total + counts
        self._routed.clear()
        assert total is not None
        return total

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within it the model attends as transformers would by itself (for generation with a cache), without gradients, in eval mode."""
        training = self.training
        self.eval()
        try:
            if self.flat:
                self.transformer.set_attn_implementation(self.own)
            with torch.no_grad():
                yield
        finally:
            self.train(training)
            if self.flat:
                self.transformer.set_attn_implementation("flat")


def _logit_scale(config: Any) -> float:
    """What logits are multiplied by: Cohere, Granite and Falcon-H1 each have their own word for it."""
    cohere, granite, falcon = (
        getattr(config, word, None) or 1.0 for word in ("logit_scale", "logits_scaling", "lm_head_multiplier")
    )
    return float(cohere * falcon / granite)


def _rope_turn(config: Any) -> int | None:
    """The length beyond which rotary frequencies are others, for every sequence that runs beside a longer one ("longrope", "dynamic")."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [k for k in given.values() if isinstance(k, dict)]
    turning = [k for k in kinds if k.get("rope_type") in ("longrope", "dynamic")]
    lengths = [k.get("original_max_position_embeddings") or config.max_position_embeddings for k in turning]
    return min(lengths, default=None)


def make_policy(model: Any) -> tuple[Policy, str]:
    """Return the policy and a sentence on how it runs: flat where a probe shows that to be exact, padded otherwise.

    The probe (tunesmith.model.probe) compares the log-probs of random segments and prefix links, laid end to end, with the model's
    own forward on each sequence alone, with every attention window shortened so that sequences are longer than it.
    """
    attention.register()
    whole = Policy(model, flat=False, trunk=False)
    if getattr(whole.transformer.config.get_text_config(), "attn_logit_softcapping", None):
        # transformers 5.17 would take SDPA, which leaves the cap out
        whole.transformer.set_attn_implementation("eager")
    own = whole.transformer.config._attn_implementation
    policy = Policy(model, own=own)
    if policy.router is not None:
        router.check(whole.transformer, policy.router, probe.random_ids(whole, 64)[None])
    probe.check_causal(whole)
    why = probe.difference(policy, whole, own)
    if not why:
        if next(policy.parameters()).device.type == "cpu":
            policy.fill_up()
        return policy, "flat batches, no padding: a probe found them exact for this model"
    policy.flat = False
    policy.trunk = not probe.difference(policy, whole, own)
    return policy, f"padded batches: flat ones are not exact for this model ({why})"

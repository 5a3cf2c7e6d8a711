"""The policy: a causal language model whose forward maps a flat batch to the log-probabilities of its targets."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.model import attention, probe, router, virtual
from tunesmith.model.attention import Segments
from tunesmith.model.head import folded, target_logps
from tunesmith.model.layout import halves, lay_out, moved, precede, preceded, sequence_lengths, without
from tunesmith.model.new_tokens import rows_of, whole_weight
from tunesmith.model.virtual import Virtual
from tunesmith.training.batch import FlatBatch

FILL = 64  # tokens; a CPU compiles every product of a new shape, and compiled layers are spared odd remainders


class Head(NamedTuple):
    """The output layer: logits = cap(scale (h W^T + bias)) with weight W (V,H), bias (V,) or None, cap(z) = softcap tanh(z / softcap)."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


class Policy(nn.Module):
    """Wraps a transformers causal LM (or PeftModel). `make_policy` finds out how a model can be run:

    flat: segments end to end, nothing padded. Otherwise rows are padded at their ends and run under the model's own attention
    `own`. trunk: the decoder's hidden states and the output layer's weights give the log-probs, at scored positions only;
    otherwise the model's own forward gives all logits. Where the adapter has virtual tokens (tunesmith.model.virtual) they stand before
    every sequence, in whatever way the model is run.

    A forward keeps the hidden states (N,H) that its log-probs were made of, with their graph, in `hidden` where `keep_hidden` is set
    (None where the model is not run by its trunk); whoever sets it takes them with `take_hidden`. `head` is what made the log-probs.

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
        self.links = flat  # whether what several sequences begin with may run once for all
        self.multiple = 1  # of tokens that batches should have
        self._fill = 1  # of tokens and virtual ones, where these run as tokens do
        self.keep_hidden = False
        self._kept: Tensor | None = None
        self.router = router.of(self.transformer.config)
        self.router_load: Tensor | None = None
        self._routed: list[tuple[Tensor, Tensor]] = []
        self._turn = _rope_turn(self.transformer.config.get_text_config())

    @classmethod
    def plain(cls, model: Any) -> "Policy":
        """Return a policy that runs the model as transformers does: what a probe compares with."""
        return cls(model, flat=False, trunk=False)

    @property
    def virtual(self) -> Virtual | None:
        """The adapter's virtual tokens, if it has any and is switched on."""
        return virtual.of(self.model)

    @property
    def head(self) -> Head:
        """What makes logits of hidden states; trained rows of new tokens are in their places, in a copy of the weights."""
        return self._head(whole_weight(self.transformer.get_output_embeddings()))

    def _head(self, weight: Tensor) -> Head:
        layer, config = self.transformer.get_output_embeddings(), self.transformer.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(weight, getattr(layer, "bias", None), _logit_scale(config), softcap)

    def fill_up(self) -> None:
        """Ask for batches of a multiple of FILL tokens, where what fills them up changes nothing: a router would route it."""
        if not self.flat or self.router is not None:
            return
        if (found := self.virtual) is not None and not found.keyed:
            self._fill = FILL
        else:
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
        self._kept = None  # of a forward that was broken off, with its graph
        if not self.trunk:
            return self._whole(batch)
        hidden = self._hidden(batch)
        if self.keep_hidden:
            self._kept = hidden
        return self._logps(hidden, batch.target_ids)

    def take_hidden(self, leave: bool = False) -> Tensor | None:
        """Return the last forward's hidden states of the scored positions, (N,H), once (leave: for somebody else too); None where none
        were kept."""
        kept, self._kept = self._kept, self._kept if leave else None
        return kept

    def _hidden(self, batch: FlatBatch) -> Tensor:
        """Return the hidden state that predicts each target, (N,H)."""
        if not self.flat:
            place, parts = self._padded(batch, self._decoder, "last_hidden_state")
            return torch.cat(list(parts))[place]
        turn = self._text_turn()
        if turn is None or not self._mixed(batch, turn):
            hidden = self._end_to_end(batch.ids, batch.positions, batch.segments, batch.lengths, batch.parents)
            return hidden[batch.target_index]
        return self._in_halves(batch, turn)

    def _text_turn(self) -> int | None:
        """The tokens of text beyond which rotary frequencies are others: virtual tokens have positions too."""
        found = None if self._turn is None else self.virtual
        return self._turn if found is None or self._turn is None else self._turn - found.tokens

    def _in_halves(self, batch: FlatBatch, turn: int) -> Tensor:
        """Run the sequences of at most `turn` tokens and the longer ones apart; (N,H)."""
        device, place, begun = batch.ids.device, np.zeros(len(batch.ids), dtype=np.int64), 0
        hidden: list[Tensor] = []
        for half in halves(batch.lengths, batch.parents, turn):
            tokens = moved(torch.from_numpy(half.tokens), device)
            segments = attention.of_lengths(half.lengths, half.parents).to(device)
            ids, positions = batch.ids[tokens], batch.positions[tokens]
            hidden.append(self._end_to_end(ids, positions, segments, half.lengths, half.parents))
            place[half.tokens] = begun + np.arange(len(half.tokens))
            begun += len(half.tokens)
        return torch.cat(hidden)[moved(torch.from_numpy(place), device)[batch.target_index]]

    def _end_to_end(
        self, ids: Tensor, positions: Tensor, segments: Segments, lengths: tuple[int, ...], parents: tuple[int, ...]
    ) -> Tensor:
        """Return the hidden states of segments laid end to end, (T,H)."""
        found = self.virtual
        if found is not None and not found.keyed:
            return self._behind_prompts(ids, positions, lengths, parents, found)
        if found is not None:
            layout = precede(lengths, parents, found.tokens)
            planned = attention.of_lengths(layout.lengths, layout.parents).to(ids.device)
            segments = replace(planned, prefix=attention.Prefix(found.pairs(), layout.places))
            positions = positions + found.tokens
        often = None if self.router is None else router.multiplicity(lengths, parents)
        inputs = {"input_ids": ids[None], "position_ids": positions[None], "segments": segments}
        return self._run(self._decoder, often, **inputs).last_hidden_state[0]  # type: ignore[no-any-return]

    def _behind_prompts(
        self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...], parents: tuple[int, ...], found: Virtual
    ) -> Tensor:
        """Return the hidden states of segments behind virtual tokens' embeddings, (T,H), which are filled up after these are in."""
        layout, n = precede(lengths, parents, found.tokens), found.tokens
        real, prompts = found.embedded(ids)
        embeddings = preceded(real, prompts, layout.places)
        places = preceded(positions + n, torch.arange(n, device=ids.device), layout.places)
        lengths, parents = layout.lengths, layout.parents
        if filling := -len(embeddings) % self._fill:
            embeddings = torch.cat([embeddings, embeddings.new_zeros(filling, embeddings.shape[1])])
            places = torch.cat([places, places.new_zeros(filling)])  # no position is beyond where frequencies turn
            lengths, parents = (*lengths, filling), (*parents, -1)
        segments = attention.of_lengths(lengths, parents).to(ids.device)
        often = None if self.router is None else router.multiplicity(lengths, parents)
        inputs = {"inputs_embeds": embeddings[None], "position_ids": places[None], "segments": segments}
        hidden = self._run(self._decoder, often, **inputs).last_hidden_state[0]
        return without(hidden[: len(hidden) - filling], n, layout.places)

    def _whole(self, batch: FlatBatch) -> Tensor:
        """Return the log-probs by the model's own forward, which gives the logits of every position."""
        module = self.model if self.virtual is None else self.transformer  # PEFT would put virtual tokens in itself
        place, parts = self._padded(batch, module, "logits")
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
        groups, place = lay_out(batch.lengths, batch.parents, self._text_turn())
        device, found = batch.ids.device, self.virtual

        def run() -> Iterator[Tensor]:
            for rows in (g.to(device) for g in groups):
                inputs, often, first = inputs_of(batch.ids[rows.take], rows.real.long(), found)
                outputs = self._run(module, often.flatten(), **inputs)
                yield getattr(outputs, output)[:, first:].flatten(0, 1)[rows.own]

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
        layer = self.transformer.get_output_embeddings()
        head, rows = self._head(layer.weight), rows_of(layer)
        if rows is not None and head.bias is not None:  # as folded puts it: a column of the weights
            rows = rows[0], torch.cat([rows[1], head.bias[rows[0], None]], 1)
        return target_logps(*folded(hidden, head), targets, head.softcap, rows)

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


def inputs_of(ids: Tensor, mask: Tensor, found: Virtual | None) -> tuple[dict[str, Any], Tensor, int]:
    """Return a model's inputs for padded rows `ids` (B,L), which of its tokens count (B,...), and where its outputs of `ids` begin.

    With virtual tokens before every row, as PEFT's own forward has them.
    """
    if found is None:
        return {"input_ids": ids, "attention_mask": mask}, mask, 0
    whole = torch.cat([mask.new_ones(len(mask), found.tokens), mask], 1)
    if found.keyed:
        cache = found.cache(len(ids))
        return {"input_ids": ids, "attention_mask": whole, "past_key_values": cache}, mask, 0
    real, prompts = found.embedded(ids)
    embeddings = torch.cat([prompts.expand(len(ids), -1, -1), real], 1)
    return {"inputs_embeds": embeddings, "attention_mask": whole}, whole, found.tokens


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


def make_policy(model: Any, kind: type[Policy] = Policy) -> tuple[Policy, str]:
    """Return the policy and a sentence on how it runs: flat where a probe shows that to be exact, padded otherwise.

    The probe (tunesmith.model.probe) compares the log-probs of random segments and prefix links, laid end to end, with the model's
    own forward on each sequence alone, with every attention window shortened so that sequences are longer than it. Where only the
    links differ it runs flat without.
    """
    attention.register()
    whole = kind.plain(model)
    if getattr(whole.transformer.config.get_text_config(), "attn_logit_softcapping", None):
        # transformers 5.17 would take SDPA, which leaves the cap out
        whole.transformer.set_attn_implementation("eager")
    own = whole.transformer.config._attn_implementation
    policy = kind(model, own=own)
    if policy.router is not None and kind is Policy:  # a classifier's own forward does not give that loss
        router.check(whole.transformer, policy.router, probe.random_ids(whole, 64)[None])
    probe.check_causal(whole)
    why = linked = probe.difference(policy, whole, own)
    if linked:
        policy.links = False
        why = probe.difference(policy, whole, own)
    if not why:
        if next(policy.parameters()).device.type == "cpu":
            policy.fill_up()
        unshared = (
            f"; what rows begin with in common runs for each, for shared it is not exact ({linked})" if linked else ""
        )
        return policy, f"flat batches, no padding: a probe found them exact for this model{unshared}"
    policy.flat = False
    policy.trunk = not probe.difference(policy, whole, own)
    return policy, f"padded batches: flat ones are not exact for this model ({why})"

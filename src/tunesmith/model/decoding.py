"""The small parts of text generation: choosing a token, finding where an answer ends, turning tokens into text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_MARK = "tunesmithmark"
OnToken = Callable[[int, int], bool | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that run together: their places among all prompts, and how many new tokens each may have."""

    rows: list[int]
    limit: int


def pick(scores: "Tensor", u: "Tensor") -> "Tensor":
    """Return a token per row, (B,): the cumulative softmax of scores, (B, V), inverted at u (B,) in [0, 1).

    A row's draw depends on its own u alone, so how rows are batched changes nothing. A score of -inf is never drawn.
    """
    cumulative = scores.to(u.dtype).softmax(-1).cumsum(-1)
    return (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1).clamp(max=scores.shape[-1] - 1)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the earliest stop string in it, and whether there was one."""
    found = [at for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may yet become a stop string: its longest end that begins one."""
    longest = max((len(s) - 1 for s in stop), default=0)
    for n in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-n:]) for s in stop):
            return n
    return 0


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens, without special tokens and without the old clean-up of spaces."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class Pieces:
    """Turns tokens that come one by one into pieces of text: never half a character, never part of a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.start = self.read = 0  # ids[start:read] are out; they give the next token its context (spaces)
        self.pending = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text made certain by this token ("" while it may be half a character or a stop string)."""
        self.ids.append(token)
        return "" if self.stopped else self._advance(final=False)

    def flush(self) -> str:
        """Return what was held back, at the end of the answer."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = decode(self.tokenizer, self.ids[self.start : self.read])
        now = decode(self.tokenizer, self.ids[self.start :])
        if len(now) > len(before) and (final or not now.endswith("\ufffd")):
            self.pending += now[len(before) :]
            self.start, self.read = self.read, len(self.ids)
        out, self.stopped = cut_at_stop(self.pending, self.stop)
        if not self.stopped and not final:
            out = out[: len(out) - held_back(out, self.stop)]
        self.pending = self.pending[len(out) :]
        return out


def turn_end(tokenizer: Any) -> int | None:
    """Return the special token the chat template writes after an answer, found by rendering one, or None.

    The answer is the last turn first (some templates write another token between turns), then one with a turn after it.
    """
    from tunesmith.data.layout import chat_text
    from tunesmith.data.sandbox import RefusedError

    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    for messages in (chat, [*chat, {"role": "user", "content": "a"}]):
        try:
            text = chat_text(messages, None, tokenizer, "a trial")
        except RefusedError:
            continue
        after = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False).input_ids
        for token in after:
            if token in special:
                return int(token)
    return None


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's and generation config's eos, the template's end of turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    known = [tokenizer.eos_token_id, *listed, turn_end(tokenizer) if tokenizer.chat_template else None]
    return sorted({int(t) for t in known if t is not None})


class Processors:
    """What turns a step's scores into the next token. The last processor leaves only the drawn token standing, which
    transformers' greedy loop then takes."""

    def __init__(
        self, temperature: float, top_p: float, top_k: int, repetition_penalty: float, seed: int | Sequence[int]
    ) -> None:
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.repetition_penalty, self.seed = repetition_penalty, seed

    def build(self, batch: Batch, pads: "Tensor", width: int) -> Any:
        """Return transformers' LogitsProcessorList for a batch of left-padded prompts (pads (B,), width columns)."""
        import transformers as t

        chain = t.LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chain.append(self._penalise(pads))
        if self.temperature > 0:
            chain.append(t.TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                chain.append(t.TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                chain.append(t.TopPLogitsWarper(self.top_p))
            chain.append(self._draw(batch, width))
        return chain

    def _penalise(self, pads: Any) -> Any:
        """CTRL's penalty (Keskar et al., 2019, arXiv 1909.05858) on tokens of the prompt and the answer so far.

        Written out because transformers 5.17 cannot be told where each row's padding ends, and counts it as seen.
        """
        import torch

        def penalise(input_ids: Any, scores: Any) -> Any:
            padding = torch.arange(input_ids.shape[1], device=input_ids.device)[None] < pads[:, None]
            seen = torch.where(padding, input_ids[:, -1:], input_ids)  # the last token is a real one
            score = scores.gather(1, seen)
            changed = torch.where(score < 0, score * self.repetition_penalty, score / self.repetition_penalty)
            return scores.scatter(1, seen, changed)

        return penalise

    def _draw(self, batch: Batch, width: int) -> Any:
        import torch

        seeds = [[self.seed, row] if isinstance(self.seed, int) else [self.seed[row]] for row in batch.rows]
        table = np.stack([np.random.default_rng(seed).random(batch.limit) for seed in seeds])

        def draw(input_ids: "Tensor", scores: "Tensor") -> "Tensor":
            wide = torch.float32 if scores.device.type == "mps" else torch.float64  # which Apple's GPUs lack
            u = torch.from_numpy(table[:, input_ids.shape[1] - width].copy()).to(wide).to(scores.device)
            return torch.full_like(scores, -torch.inf).scatter_(1, pick(scores, u)[:, None], 0.0)

        return draw


class Watch:
    """A stopping criterion per row: a stop string came, or the listener, who hears every new token, had enough."""

    def __init__(
        self, tokenizer: Any, batch: Batch, stop: Sequence[str], ends: set[int], on_token: OnToken | None
    ) -> None:
        self.tokenizer, self.batch, self.stop, self.ends, self.on_token = tokenizer, batch, stop, ends, on_token
        # A token is at least one byte, bar a few that are empty: so many hold any stop string that just came to its end
        self.tail = max((len(s.encode()) for s in stop), default=0) + 8
        self.done = [False] * len(batch.rows)
        self.prompt_width = 0

    def of(self, batch: Batch) -> "Watch":
        """Return the same for other rows."""
        other = Watch(self.tokenizer, batch, self.stop, self.ends, self.on_token)
        other.prompt_width = self.prompt_width
        return other

    def __call__(self, input_ids: "Tensor", scores: Any, **_: Any) -> "Tensor":
        import torch

        if self.stop or self.on_token:
            new = input_ids[:, self.prompt_width :][:, -self.tail :].tolist()
            for i, ids in enumerate(new):
                if not self.done[i]:
                    self.done[i] = ids[-1] in self.ends or self._enough(self.batch.rows[i], ids)
        return torch.tensor(self.done, device=input_ids.device)

    def _enough(self, row: int, ids: list[int]) -> bool:
        heard = self.on_token is not None and bool(self.on_token(row, ids[-1]))
        return heard or (bool(self.stop) and cut_at_stop(decode(self.tokenizer, ids), self.stop)[1])

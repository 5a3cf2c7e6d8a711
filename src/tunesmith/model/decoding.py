"""The small parts of text generation: choosing a token, finding where an answer ends, turning tokens into text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_MARK = "tunesmithmark"


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
    from jinja2 import TemplateError

    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    for messages in (chat, [*chat, {"role": "user", "content": "a"}]):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, ValueError, TypeError, KeyError):
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

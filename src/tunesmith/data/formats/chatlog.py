"""chatlog: logged conversations whose answers were rated, written again, or edited by people.

A row is a session: "messages" (or turns, conversation, conversations, log) of turns, each with a role ("role" or "from") and
what was said ("content", "text" or "value"), and optional "tools" and "system". An answer may carry

- "rating" (also feedback, thumbs, vote): true, 1, "good", "thumbs up"; false, 0, -1, "bad"; or an object with such a "value";
- "regenerations" (also alternatives, discarded): answers that were thrown away for this one, strings or turns, rated or not;
- "edited" (also edit, edited_content, correction): the answer as a person put it right. A turn that holds the new text as
  its content has the old one as "original".

"content" is the answer the conversation went on from. A row of one exchange, {"prompt", "response", "edited" or
"regenerations", "rating"}, is read as a session of two turns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.formats.verdict import judged
from tunesmith.data.records import Chat, Message, Origin, Preference, Record, Verdict

RANK = 2
SHAPE = "messages with rating, regenerations or edited"
LOGS = ("messages", "turns", "conversation", "conversations", "log")
RATINGS = ("rating", "feedback", "thumbs", "vote")
OTHERS = ("regenerations", "alternatives", "discarded")
EDITS = ("edited", "edit", "edited_content", "correction")
ORIGINALS = ("original", "original_content")
RESPONSES = ("response", "completion", "answer", "output")
FIELDS = (*LOGS, *RATINGS, *OTHERS, *EDITS, *ORIGINALS, *RESPONSES, *_turns.ASKED)
ALIKE = ("messages", "sharegpt")  # of a log most sessions have no ratings
SIGNS = (*LOGS, *OTHERS, *EDITS, *ORIGINALS)
_MARKS = frozenset((*RATINGS, *OTHERS, *EDITS, *ORIGINALS))
_CHANGED = (*OTHERS, *EDITS, *ORIGINALS)


@dataclass(slots=True)
class _Marks:
    """What people made of one turn: good or bad; what they wrote for it; what it was; the answers thrown away, with their ratings."""

    good: bool | None
    edited: str | None
    original: str | None
    others: list[tuple[Message, bool | None]]


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    field = c.first_of(row, LOGS)
    if field is None:
        sign = c.first_of(row, _CHANGED)
        one = sign and c.first_of(row, RESPONSES) and _turns.prompt_field(row)
        return f"has a response with {sign}" if one else None
    if isinstance(row[field], list):
        for turn in row[field]:
            if (
                isinstance(turn, dict)
                and not _MARKS.isdisjoint(turn)
                and (sign := c.first_of(turn, (*RATINGS, *_CHANGED)))
            ):
                return f"has {field} with {sign}"
    return None


def convert(row: dict[str, Any], origin: Origin) -> list[Record]:
    """Return what a session teaches: a Chat, then for each answer a Verdict and a Preference where there is one.

    The Chat has the edited text where there is one, and trains every answer but those rated bad and not edited. A Verdict
    is made of every rated answer, thrown away ones too. A Preference puts the edit over what it replaced, the kept answer
    over those thrown away (unless it was rated bad: then those rated good over it). Where it has more than two answers,
    their scores (2, 1, 0) only say which come before which.
    """
    c.no_media(row, origin)
    field = c.first_of(row, LOGS)
    if field is None:
        used = {*_turns.asked_fields(row), *_MARKS, *RESPONSES}
        said = c.first_of(row, RESPONSES) or RESPONSES[0]
        marks = {k: v for k, v in row.items() if k in _MARKS}
        turns = [*_turns.prompt(row, origin), {"role": "assistant", "content": c.text(row, said, origin), **marks}]
    else:
        used = {field, *_turns.SYSTEMS, "tools"}
        turns = [
            one
            for i, turn in enumerate(c.objects(row[field], field, origin, "turns"))
            for one in c.apart(turn, f"{field}[{i}]", origin)
        ]
    where = field or "response"
    bases, marked = [], []
    for i, turn in enumerate(turns):
        bases.append(_base(turn))
        marked.append(_marks(turn, f"{where}[{i}]" if field else "", origin))
    messages, trained = _turns.conversation(bases, where, origin)
    whole = _turns.with_system(row, messages, origin)
    if whole is not messages:
        trained, marked = [False, *trained], [_Marks(None, None, None, []), *marked]
    tools, extra = c.tools(row, origin), c.rest(row, used)
    return list(_records(whole, trained, marked, where, Chat([], [], origin, tools, extra)))


def _records(
    messages: list[Message], trained: list[bool], marked: list[_Marks], where: str, like: Chat
) -> Iterator[Record]:
    """Yield the records of a session; of `like` origin, tools and extra fields are taken."""
    kept: list[Message] = []
    learnt: list[bool] = []
    judgements: list[Record] = []
    for message, train, marks in zip(messages, trained, marked, strict=True):
        new = message if marks.edited is None else {**message, "content": marks.edited}
        old = message if marks.original is None else {**message, "content": marks.original}
        if message["role"] == "assistant":
            judgements += _judged(list(kept), old, new, marks, where, like)
        changed = new != old
        kept.append(new)
        learnt.append(train and c.answers(new) and (changed or marks.good is not False))
    if any(learnt):
        yield Chat(kept, learnt, like.origin, like.tools, like.extra)
    yield from judgements


def _judged(
    prompt: list[Message], old: Message, new: Message, marks: _Marks, where: str, like: Chat
) -> Iterator[Record]:
    """Yield the Verdicts and the Preference of one answer, `new` where it was edited."""
    others = [(m, good) for m, good in marks.others if m["content"] not in (old["content"], new["content"])]
    rated = [(m, good) for m, good in [(old, marks.good), *others] if good is not None]
    if marks.good is False:
        ranked = [(m, 1.0) for m, good in others if good] + [(old, 0.0)]
    else:
        ranked = [(old, 1.0)] + [(m, 0.0) for m, good in others if not good]
    if new != old:
        unsure = [(m, 0.0) for m, good in others if not good]  # not known to be better than the edit
        ranked = [(new, 2.0), (old, 1.0 if marks.good is not False else 0.0), *unsure]
    if not prompt and (rated or len(ranked) > 1):
        found = (
            f'"{where}" begins with an answer that was rated or changed; expected the turn that it answers before it.'
        )
        raise c.RowError(like.origin, where, "no_prompt", found)
    for message, good in rated:
        yield Verdict(prompt, [message], good, like.origin, like.tools, like.extra)
    if len(ranked) > 1:
        scores = [score for _, score in ranked] if len(ranked) > 2 else None
        yield Preference(prompt, [[m] for m, _ in ranked], like.origin, scores, like.tools, like.extra)


def _base(turn: dict[str, Any]) -> dict[str, Any]:
    """Return the turn without its marks, and with what it says as its content."""
    base = {key: value for key, value in turn.items() if key not in _MARKS}
    if "text" in base and "content" not in base and "value" not in base:
        base["content"] = base.pop("text")
    if "from" in base and "role" not in base and "content" in base:
        base["value"] = base.pop("content")
    return base


def _marks(turn: dict[str, Any], where: str, origin: Origin) -> _Marks:
    place = f"{where}." if where else ""
    rating, other = c.first_of(turn, RATINGS), c.first_of(turn, OTHERS)
    edit, original = c.first_of(turn, EDITS), c.first_of(turn, ORIGINALS)
    good = None if rating is None else _good(turn[rating], f"{place}{rating}", origin)
    texts = []
    for name in (edit, original):
        if name and not isinstance(turn[name], str):
            raise c.wrong_type(origin, f"{place}{name}", turn[name], "a string")
        texts.append(turn[name] if name else None)
    others = []
    listed = c.listed(turn[other]) if other else []
    if not isinstance(listed, list):
        raise c.wrong_type(origin, f"{place}{other}", listed, "a list of answers")
    for i, item in enumerate(listed):
        spot = f"{place}{other}[{i}]"
        item = {"content": item} if isinstance(item, str) else item
        if not isinstance(item, dict):
            raise c.wrong_type(origin, spot, item, "an answer: a string or a turn")
        base = _base(item)
        message = _turns.conversation([base if "from" in base else {"role": "assistant", **base}], spot, origin)[0][0]
        name = c.first_of(item, RATINGS)
        others.append((message, None if name is None else _good(item[name], f"{spot}.{name}", origin)))
    return _Marks(good, texts[0], texts[1], others)


def _good(value: Any, field: str, origin: Origin) -> bool:
    if isinstance(value, dict):
        value = value.get(c.first_of(value, ("value", "rating", "score", "thumbs")) or "", value)
    good = judged(value)
    if good is None:
        raise c.wrong_type(
            origin, field, value, 'a verdict: true or false, 1 or 0, "good" or "bad" (stars must be made one)'
        )
    return good

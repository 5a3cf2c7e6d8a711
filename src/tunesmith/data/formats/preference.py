"""preference: "chosen" and "rejected" with their "prompt", or as whole conversations that begin alike; optional scores.

Prompt: a string, a list of messages, an Alpaca instruction, a ShareGPT conversation. Answers: strings, a message each, or
lists of messages. Without a prompt, what both begin with is it (TRL's implicit form; HH-RLHF's "\\n\\nHuman: ..." strings).
"""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Message, Origin, Preference, Record

RANK = 3
SHAPE = "prompt, chosen, rejected"
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),  # LLaMA-Factory's v1
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's
    ("response_j", "response_k"),  # StackExchange pairs
    ("response", "rejected_response"),  # ms-swift's
    ("output", "rejected"),  # Alpaca with an answer that is worse
)
BESIDE = (("messages", "rejected_response"), ("messages", "rejected_messages"))
"""A conversation, and beside it the worse last answer, or the conversation with that (ms-swift's)."""
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
FIELDS = (*dict.fromkeys(name for pair in PAIRS + BESIDE + SCORES for name in pair), *_turns.ASKED)
ALIKE = ("ranked",)
SIGNS = tuple(dict.fromkeys(worse for _, worse in PAIRS + BESIDE))


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    for better, worse in (*PAIRS, *BESIDE):
        if better in row and worse in row and not isinstance(row[worse], (bool, int, float)):
            if better in _turns.LISTS:
                return f"has {better} and {worse}"
            asked = _turns.prompt_field(row)
            return f"has {better} and {worse}" + (
                f" with {asked}" if asked else ", whose common beginning is the prompt"
            )
    return None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Preference of two answers; of several chosen or rejected ones those of a side are ties."""
    beside = next((pair for pair in BESIDE if all(name in row for name in pair)), None)
    if beside and _pair_of(row) is None:
        return _beside(row, beside, origin)
    several = {name: row[name] for name in PAIRS[0] if _is_several(row.get(name))}
    if several and all(name in row for name in PAIRS[0]):
        return _several(row, several, origin)
    fields = _pair_of(row) or PAIRS[0]
    if isinstance(row.get("input"), dict):  # OpenAI's: {"messages", "tools"} inside
        row = {**{k: v for k, v in row.items() if k != "input"}, **row["input"]}
    pair = [_turns.turns(c.required(row, name, origin), name, "assistant", origin) for name in fields]
    asked = _turns.prompt_field(row)
    if pair[0][0]["role"] in ("assistant", "tool") and pair[1][0]["role"] in ("assistant", "tool"):
        if asked is None and all(isinstance(row[name], str) for name in fields):
            prompt, pair = _common_text(pair[0][0]["content"], pair[1][0]["content"], fields, origin)
        else:
            prompt = _turns.prompt(row, origin)
    else:
        prompt, pair = _common_turns(pair, fields, origin)
        if asked is not None:
            _same_prompt(_turns.prompt(row, origin), prompt, asked, fields[0], origin)
        prompt = _turns.with_system(row, prompt, origin)
    scores, read = _scores(row, origin)
    return Preference(
        prompt, pair, origin, scores, c.tools(row, origin), c.rest(row, {*fields, *read, *_turns.asked_fields(row)})
    )


def _pair_of(row: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if all(name in row for name in pair)), None)


def _beside(row: dict[str, Any], fields: tuple[str, str], origin: Origin) -> Record:
    """Return the pair of a conversation's last answer and the worse one that stands beside it."""
    good, bad = fields
    prompt, chosen = _turns.parted(_turns.conversation(row[good], good, origin)[0], good, origin)
    rejected = _turns.turns(row[bad], bad, "assistant", origin)
    if rejected[0]["role"] not in ("assistant", "tool"):
        rejected = _turns.parted(rejected, bad, origin)[1]
    c.no_media(row, origin)
    prompt = _turns.with_system(row, prompt, origin)
    extra = c.rest(row, {*fields, *_turns.SYSTEMS, c.tool_field(row)})
    return Preference(prompt, [chosen, rejected], origin, None, c.tools(row, origin), extra)


def _is_several(value: Any) -> bool:
    """Say whether a field holds a list of answers, not one answer's turns."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, (str, list)) for item in value)


def _several(row: dict[str, Any], several: dict[str, list[Any]], origin: Origin) -> Record:
    """Return the Preference of lists of answers: each chosen one over each rejected one."""
    sides = [
        [_turns.answer(item, f"{name}[{i}]", origin) for i, item in enumerate(several[name])]
        if name in several
        else [_turns.answer(row[name], name, origin)]
        for name in PAIRS[0]
    ]
    scores = [score for score, side in zip((1.0, 0.0), sides, strict=True) for _ in side]
    extra = c.rest(row, {*PAIRS[0], *_turns.asked_fields(row)})
    prompt, tools = _turns.prompt(row, origin), c.tools(row, origin)
    return Preference(prompt, sides[0] + sides[1], origin, scores if len(scores) > 2 else None, tools, extra)


def _scores(row: dict[str, Any], origin: Origin) -> tuple[list[float] | None, set[str]]:
    for names in SCORES:
        if all(row.get(name) is not None for name in names):
            scores = [c.number(row[name], name, origin) for name in names]
            if scores[0] < scores[1]:
                found = (
                    f'field "{names[0]}" is {scores[0]:g}, below "{names[1]}" ({scores[1]:g}); swap the two answers.'
                )
                raise c.RowError(origin, names[0], "bad_value", found)
            return scores, set(names)
    return None, set()


def _no_beginning(fields: tuple[str, str], origin: Origin) -> c.RowError:
    found = f'"{fields[0]}" and "{fields[1]}" have no common beginning that could be their prompt; give it as "prompt".'
    return c.RowError(origin, fields[0], "no_prompt", found)


def _common_turns(
    pair: list[list[Message]], fields: tuple[str, str], origin: Origin
) -> tuple[list[Message], list[list[Message]]]:
    """Return the turns that both begin with, up to where the assistant speaks, and what follows in each."""
    for name, turns in zip(fields, pair, strict=True):
        if turns[-1]["role"] not in ("assistant", "tool"):
            found = f'field "{name}" ends with a turn of the {turns[-1]["role"]}; expected an answer at its end.'
            raise c.RowError(origin, name, "no_answer", found)
    shortest = min(map(len, pair)) - 1
    k = next((i for i in range(shortest) if pair[0][i] != pair[1][i]), shortest)
    while k and not all(turns[k]["role"] == "assistant" for turns in pair):
        k -= 1
    if not k:
        raise _no_beginning(fields, origin)
    return pair[0][:k], [turns[k:] for turns in pair]


def _common_text(
    chosen: str, rejected: str, fields: tuple[str, str], origin: Origin
) -> tuple[list[Message], list[list[Message]]]:
    """Return what both texts begin with, in whole words, as the user's turn, and the rest of each as its answer."""
    k = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while k and not chosen[k - 1].isspace():
        k -= 1
    prompt = chosen[:k].rstrip()
    if not prompt:
        raise _no_beginning(fields, origin)
    answers = [[c.turn("assistant", text[len(prompt) :].lstrip())] for text in (chosen, rejected)]
    return [c.turn("user", prompt)], answers


def _same_prompt(stated: list[Message], found: list[Message], field: str, chosen: str, origin: Origin) -> None:
    """Refuse a row whose prompt is another than the one its whole conversations begin with."""
    if str(stated[-1]["content"]).strip() not in (str(m["content"]).strip() for m in found):
        message = f'field "{field}" is not what "{chosen}" begins with; give the prompt once, or the same in both.'
        raise c.RowError(origin, field, "bad_value", message)

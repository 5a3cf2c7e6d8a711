"""oasst: trees of "prompter" and "assistant" messages with "replies" (OpenAssistant, Koepf et al., 2023, arXiv 2304.07327).

A row is a tree ({"prompt": {...}}), its first message, or one message that names its parent ("parent_id" or
"parent_message_id"): of those `join` makes trees, one row for each, numbered as its first message is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Message, Origin, Preference, Prompt, Record

RANK = 1
SHAPE = "prompt with replies"
IDS = ("message_id", "user_message_id")
PARENTS = ("parent_id", "parent_message_id")
FIELDS = ("prompt", "replies", "text", "role", *IDS, *PARENTS, "message_tree_id")
SIGNS = ("prompt", "replies", *PARENTS)
ROLES = {"prompter": "user", "user": "user", "assistant": "assistant"}
KEPT = ("message_tree_id", "tree_state", "lang", "synthetic", "model_name")
_DEEPEST = 200


@dataclass(slots=True)
class _Node:
    message: Message
    rank: float | None
    replies: list["_Node"]


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    root = row.get("prompt")
    if isinstance(root, dict):
        return "has a prompt with replies" if "replies" in root else None
    if "role" not in row or "text" not in row:
        return None
    if "replies" in row:
        return "has a message with replies"
    parent = next((name for name in PARENTS if name in row), None)
    return f"has messages with {parent}" if parent else None


def join(
    rows: Iterable[tuple[int, dict[str, Any]] | c.RowError], file: str
) -> Iterator[tuple[int, dict[str, Any]] | c.RowError]:
    """Yield a row per tree for rows that are single messages; other rows and errors as they are.

    Messages with a "message_tree_id" are held until the next tree begins, those without until the end of the file. A
    message whose parent is not among them is yielded as a RowError.
    """
    held: list[tuple[int, dict[str, Any]]] = []
    for item in rows:
        if isinstance(item, c.RowError) or not _flat(item[1]):
            yield item
            continue
        tree = item[1].get("message_tree_id")
        if held and tree is not None and tree != held[-1][1].get("message_tree_id"):
            yield from _trees(held, file)
            held = []
        held.append(item)
    yield from _trees(held, file)


def convert(row: dict[str, Any], origin: Origin) -> list[Record]:
    """Return a tree's Chats and Preferences; a tree nobody answered is a Prompt, a deleted one nothing.

    Chats: the paths through the best answer to each question, up to their last answer; an answer that several paths share
    is trained in the first of them. Preferences: the ranked answers to each question. What is deleted, or was voted out in
    review, is left out with its replies.
    """
    if _flat(row):
        found = "this is one message of a tree whose other messages are other rows; give the whole file, so that they are joined."
        raise c.RowError(origin, next(name for name in PARENTS if name in row), "not_joined", found)
    nested = isinstance(row.get("prompt"), dict)
    first = row["prompt"] if nested else row
    root = _read(first, "prompt" if nested else "", origin)
    if root is None:
        return []
    extra = {k: v for source in (first, row) for k, v in source.items() if k in KEPT and v is not None}
    made = [*_chats(root, origin, extra), *_preferences(root, [], origin, extra)]
    return made or [Prompt([root.message], origin, extra=extra)]


def _flat(row: dict[str, Any]) -> bool:
    return "replies" not in row and any(name in row for name in PARENTS) and not isinstance(row.get("prompt"), dict)


def _trees(held: list[tuple[int, dict[str, Any]]], file: str) -> Iterator[tuple[int, dict[str, Any]] | c.RowError]:
    nodes: dict[Any, dict[str, Any]] = {}
    rows: list[tuple[int, Any, dict[str, Any]]] = []
    for number, row in held:
        try:
            id_ = _id(row, IDS, Origin(file, number))
            if id_ in nodes:
                found = f'field "message_id" ({c.shown(id_)}) is that of another message too; take one of them out.'
                raise c.RowError(Origin(file, number), c.first_of(row, IDS), "repeated_id", found)
        except c.RowError as error:
            yield error
            continue
        nodes[id_] = {**row, "replies": []}
        rows.append((number, id_, row))
    roots, reached = [], []
    for number, id_, row in rows:
        parent = row.get(c.first_of(row, PARENTS) or "")
        if parent is None:
            roots.append((number, nodes[id_]))
            reached.append(id_)
        elif isinstance(parent, (str, int)) and parent in nodes:
            nodes[parent]["replies"].append(nodes[id_])
    for id_ in reached:  # grows: what is not reached hangs on a message that is not there, or on itself
        reached += [_id(reply, IDS, Origin(file, 0)) for reply in nodes[id_]["replies"]]
    found_ids = set(reached)
    for number, id_, row in rows:
        if id_ not in found_ids:
            field = c.first_of(row, PARENTS) or PARENTS[0]
            found = f'field "{field}" leads from {c.shown(row[field])} to no first message; keep the messages of a tree together.'
            yield c.RowError(Origin(file, number), field, "orphan_message", found)
    yield from roots


def _id(row: dict[str, Any], names: tuple[str, ...], origin: Origin) -> str | int:
    field = c.first_of(row, names) or names[0]
    value = c.required(row, field, origin)
    if not isinstance(value, (str, int)):
        raise c.wrong_type(origin, field, value, "a string")
    return value


def _read(raw: Any, where: str, origin: Origin, depth: int = 0) -> _Node | None:
    """Return a message and its replies, checked; None where it is deleted or was voted out."""
    place = f"{where}." if where else ""
    if not isinstance(raw, dict):
        raise c.wrong_type(origin, where, raw, "an object")
    if raw.get("deleted") or raw.get("review_result") is False:
        return None
    for field in ("text", "role"):
        if not isinstance(raw.get(field), str):
            raise c.wrong_type(origin, f"{place}{field}", raw.get(field), "a string")
    role = ROLES.get(raw["role"])
    if role is None or (role != "user" and not depth):
        expected = "prompter or assistant" if depth else "prompter, who begins a tree"
        found = f'field "{place}role" is {c.shown(raw["role"])}, expected {expected}.'
        raise c.RowError(origin, f"{place}role", "bad_value", found)
    if depth > _DEEPEST:
        raise c.RowError(origin, f"{place}replies", "bad_value", f"the tree is deeper than {_DEEPEST} messages.")
    replies = raw.get("replies") or []
    if not isinstance(replies, list):
        raise c.wrong_type(origin, f"{place}replies", replies, "a list of messages")
    read = [_read(reply, f"{place}replies[{i}]", origin, depth + 1) for i, reply in enumerate(replies)]
    rank = None if raw.get("rank") is None else c.number(raw["rank"], f"{place}rank", origin)
    return _Node(c.turn(role, raw["text"]), rank, [node for node in read if node is not None])


def _chats(root: _Node, origin: Origin, extra: dict[str, Any]) -> Iterator[Record]:
    seen: set[int] = set()
    for path in _paths(root, []):
        if path[-1].message["role"] == "user":
            path = path[:-1]  # a question that nobody answered
        trained = [n.message["role"] == "assistant" and id(n) not in seen and c.answers(n.message) for n in path]
        seen.update(id(node) for node in path)
        if any(trained):
            yield Chat([node.message for node in path], trained, origin, extra=dict(extra))


def _paths(node: _Node, before: list[_Node]) -> Iterator[list[_Node]]:
    here, replies = [*before, node], node.replies
    if node.message["role"] == "user" and replies:
        replies = [min(replies, key=lambda reply: float("inf") if reply.rank is None else reply.rank)]
    if not replies:
        yield here
    for reply in replies:
        yield from _paths(reply, here)


def _preferences(node: _Node, before: list[Message], origin: Origin, extra: dict[str, Any]) -> Iterator[Record]:
    here = [*before, node.message]
    answers = [reply for reply in node.replies if reply.rank is not None and reply.message["role"] == "assistant"]
    ranked = sorted(answers, key=lambda reply: reply.rank or 0.0)
    if node.message["role"] == "user" and len(ranked) > 1:
        ranks = [reply.rank or 0.0 for reply in ranked]
        scores = [0.0 - rank for rank in ranks] if len(set(ranks)) < len(ranks) else None
        yield Preference(here, [[reply.message] for reply in ranked], origin, scores, extra=dict(extra))
    for reply in node.replies:
        yield from _preferences(reply, here, origin, extra)

"""chatgpt: a conversation of ChatGPT's data export (conversations.json), "mapping" of nodes with "parent" and "children".

The way from the first turn to "current_node" is the conversation; answers beside it on that way were generated again, and
are read as a chat log's "regenerations". Prompts that the person wrote anew lead to other ways, which are left out.
"""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import chatlog
from tunesmith.data.records import Origin, Record

RANK = 0
SHAPE = "mapping, current_node"
FIELDS = ("mapping", "current_node")
SIGNS = FIELDS[:1]
KEPT = ("conversation_id", "id", "title")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    mapping = row.get("mapping")
    node = next(iter(mapping.values()), None) if isinstance(mapping, dict) else None
    return "has a mapping of nodes with children" if isinstance(node, dict) and "children" in node else None


def convert(row: dict[str, Any], origin: Origin) -> list[Record]:
    """Return what the conversation teaches, as a chat log's (see chatlog.convert).

    Answers that rest on a tool's result, which the export does not show as the model saw it, are not trained.
    """
    nodes = c.required(row, "mapping", origin)
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        raise c.wrong_type(origin, "mapping", nodes, "an object of nodes")
    turns: list[dict[str, Any]] = []
    by_tool = False
    for id_ in _way(nodes, row.get("current_node"), origin):
        role, text = _said(nodes[id_], id_, origin)
        by_tool = role == "tool" or (by_tool and role != "user")
        if role in ("user", "assistant", "system") and text:
            turn: dict[str, Any] = {"role": role, "content": text}
            if role == "assistant":
                turn |= {"train": False} if by_tool else {"regenerations": _beside(nodes, id_, origin)}
            turns.append(turn)
    if not turns:
        raise c.RowError(
            origin, "mapping", "empty_field", 'field "mapping" holds no turn in which somebody says a word.'
        )
    return chatlog.convert({"messages": turns, **{key: row[key] for key in KEPT if key in row}}, origin)


def _way(nodes: dict[str, Any], last: Any, origin: Origin) -> list[str]:
    """Return the ids from the first node to `last` (where that is not given: the node that was added last)."""
    id_ = next(reversed(nodes), None) if last is None else last
    way: list[str] = []
    while id_ is not None:
        if not isinstance(id_, str) or id_ not in nodes or id_ in way:
            found = f'field "mapping" has no node {c.shown(id_)} to go on to; expected every parent once, up to the first turn.'
            raise c.RowError(origin, "mapping", "bad_value", found)
        way.append(id_)
        id_ = nodes[id_].get("parent")
    return way[::-1]


def _said(node: dict[str, Any], id_: str, origin: Origin) -> tuple[str, str]:
    """Return (role, text) of a node; "tool" for what goes to or comes from one, "" for what nobody sees."""
    message = node.get("message")
    where = f"mapping.{id_}.message"
    if message is None:
        return "", ""
    if not isinstance(message, dict):
        raise c.wrong_type(origin, where, message, "an object")
    author, content, metadata = (message.get(key) or {} for key in ("author", "content", "metadata"))
    if not all(isinstance(value, dict) for value in (author, content, metadata)):
        raise c.wrong_type(origin, where, message, "an object with author, content and metadata")
    role = author.get("role")
    if role == "tool" or (role == "assistant" and message.get("recipient") not in (None, "all")):
        return "tool", ""
    if metadata.get("is_visually_hidden_from_conversation") or message.get("weight") == 0:
        return "", ""
    if content.get("content_type", "text") not in ("text", "multimodal_text"):
        return "", ""  # thoughts, recaps, the person's settings
    parts = content.get("parts") or []
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        found = f'"{where}.content.parts" holds more than text; only text is read, so take this conversation out.'
        raise c.RowError(origin, f"{where}.content.parts", "unsupported_part", found)
    return str(role), "\n".join(parts)


def _beside(nodes: dict[str, Any], id_: str, origin: Origin) -> list[str]:
    """Return the other answers to what a node answers."""
    parent = nodes.get(nodes[id_].get("parent"), {})
    others = parent.get("children")
    if not isinstance(others, list):
        return []
    said = [
        _said(nodes[other], other, origin)
        for other in others
        if isinstance(other, str) and other != id_ and other in nodes
    ]
    return [text for role, text in said if role == "assistant" and text]

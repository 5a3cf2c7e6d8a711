"""Calls, results and declared tools fit together, or the turn is named."""

import pytest

from tunesmith.data.checks import tools

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["c", "f"]},
            "near": {"type": ["string", "null"]},
            "exact": {"type": "boolean"},
        },
        "required": ["place"],
    },
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"place": "Oslo"}, None),
        ({"place": "Oslo", "days": 3, "unit": "c", "near": "x", "exact": True}, None),
        ({"place": "Oslo", "days": None}, None),
        ("{place", "has arguments that are no JSON object"),
        ({}, 'lacks the required argument "place"'),
        ({"place": 3}, 'has the argument "place" of another type than string'),
        ({"place": "Oslo", "days": True}, 'has the argument "days" of another type than integer'),
        ({"place": "Oslo", "unit": "k"}, 'has the argument "unit" outside its enum (c, f)'),
        ({"place": "Oslo", "dayz": 3}, 'has an argument "dayz" that the tool does not take. Did you mean "days"?'),
    ],
)
def test_arguments(arguments, said):
    assert tools.misfit(arguments, WEATHER["parameters"]) == said


@pytest.mark.parametrize(
    "schema", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}, "text", {"properties": None}]
)
def test_a_schema_that_says_nothing_asks_nothing(schema):
    assert tools.misfit({"a": 1}, schema) is None
    assert tools.misfit({"b": 1}, {"properties": {"a": {}}, "additionalProperties": True}) is None


def call(name="get_weather", id_=None, **arguments):
    made = {"type": "function", "function": {"name": name, "arguments": arguments or {"place": "Oslo"}}}
    return made if id_ is None else {"id": id_, **made}


def talk(*turns, declared=True):
    made = [{"role": "user", "content": "How is it?"}]
    for turn in turns:
        if isinstance(turn, list):
            made.append({"role": "assistant", "content": "", "tool_calls": turn})
        elif turn.startswith("result"):
            id_ = turn.removeprefix("result").strip()
            made.append({"role": "tool", "content": "{}"} | ({"tool_call_id": id_} if id_ else {}))
        else:
            made.append({"role": turn, "content": "Fine."})
    return {"messages": made} | ({"tools": [WEATHER]} if declared else {})


@pytest.mark.parametrize(
    ("row", "kinds_found"),
    [
        (talk([call()], "result", "assistant"), []),
        (talk([call()]), []),  # a conversation may end with a call: that is what is learnt
        (talk([call(id_="a"), call(id_="b")], "result b", "result a", "assistant"), []),
        (talk([call(), call()], "result", "assistant"), []),  # both results in one turn
        (talk([call(id_="a"), call(id_="b")], "result a", "assistant"), ["unanswered_call"]),
        (talk([call()], "user", "assistant"), ["unanswered_call"]),
        (talk([call(id_="a"), call(id_="a")], "result a", "result a", "assistant"), ["repeated_call"]),
        (talk([call(id_="a")], "result a", [call(id_="a")], "result a", "assistant"), []),  # of two turns
        (talk([call(id_="a")], "result z", "assistant"), ["orphan_tool", "unanswered_call"]),
        (talk("assistant", "result"), ["orphan_tool"]),
        (talk([call("get_wether")], "result", "assistant"), ["unknown_tool"]),
        (talk([call(days=3)], "result", "assistant"), ["bad_arguments"]),
        (talk([call()], "result", "assistant", declared=False), ["no_tools_declared"]),
    ],
)
def test_calls_and_results(kinds, row, kinds_found):
    assert sorted(kind for _, kind in kinds(tools.check, row)) == kinds_found


def test_tools_told_in_the_systems_text_are_declared(kinds):
    row = talk([call()], "result", "assistant", declared=False)
    row["messages"].insert(0, {"role": "system", "content": "You can call get_weather(place)."})
    assert kinds(tools.check, row) == []

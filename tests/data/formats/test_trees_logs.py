"""Conversation trees and chat logs: what several records a row makes, derived by hand."""

import pytest

from tunesmith.data import detect
from tunesmith.data.detect import best_match, convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Verdict

ORIGIN = Origin("data.jsonl", 7)


def read(row):
    return convert(row, ORIGIN, best_match(row)[0])


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


def node(text, *replies, role=None, **more):
    return {
        "text": text,
        "role": role or ("assistant" if text.isupper() else "prompter"),
        "replies": list(replies),
        **more,
    }


# q is answered by A (second best, with two follow-ups) and B (best; asked r, answered by C, and s, which nobody answered).
TREE = {
    "message_tree_id": "t",
    "tree_state": "ready",
    "prompt": node(
        "q",
        node("A", node("x", node("X")), rank=1),
        node("B", node("r", node("C", rank=None)), node("s"), rank=0),
        node("D", rank=1),
        node("E", rank=0, deleted=True),
        lang="en",
    ),
}


def at(part):
    return Origin("data.jsonl", 7, part)


def test_a_tree_makes_chats_of_the_best_answers_and_preferences_of_the_ranked():
    extra = {"lang": "en", "message_tree_id": "t", "tree_state": "ready"}
    assert read(TREE) == [
        Chat([u("q"), a("B"), u("r"), a("C")], [False, True, False, True], at(0), extra=extra),
        Preference([u("q")], [[a("B")], [a("A")], [a("D")]], at(1), [0.0, -1.0, -1.0], extra=extra),
    ]


def test_an_answer_that_two_paths_share_is_trained_once():
    first, second = read({"prompt": node("q", node("A", node("r", node("B")), node("s", node("C"))))})
    assert (first.messages, first.trained) == ([u("q"), a("A"), u("r"), a("B")], [False, True, False, True])
    assert (second.messages, second.trained) == ([u("q"), a("A"), u("s"), a("C")], [False, False, False, True])


def test_ranks_that_differ_need_no_scores():
    made = read({"prompt": node("q", node("A", rank=2), node("B", rank=1), node("C"))})
    assert made[1] == Preference([u("q")], [[a("B")], [a("A")]], at(1))  # C was not ranked


def test_trees_without_an_answer():
    assert read({"prompt": node("q")}) == [Prompt([u("q")], at(0))]
    assert read({"prompt": node("q", node("A", review_result=False))}) == [Prompt([u("q")], at(0))]
    assert read({"prompt": node("q", node("A"), deleted=True)}) == []


FLAT = [
    {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "message_tree_id": "1"},
    {"message_id": "3", "parent_id": "2", "text": "r", "role": "prompter", "message_tree_id": "1"},
    {"message_id": "2", "parent_id": "1", "text": "A", "role": "assistant", "message_tree_id": "1", "rank": 0},
    {"message_id": "4", "parent_id": "1", "text": "B", "role": "assistant", "message_tree_id": "1", "rank": 1},
    {"message_id": "5", "parent_id": None, "text": "z", "role": "prompter", "message_tree_id": "5"},
    {"message_id": "6", "parent_id": "9", "text": "C", "role": "assistant", "message_tree_id": "5"},
]


@pytest.mark.parametrize("with_trees", [True, False])
def test_flat_messages_are_joined_to_trees(with_trees):
    flat = [row if with_trees else {k: v for k, v in row.items() if k != "message_tree_id"} for row in FLAT]
    items = list(detect.rows(enumerate(flat, 1), "oasst", "f"))
    orphans = [item for item in items if isinstance(item, RowError)]
    assert [(e.origin.row, e.field, e.kind) for e in orphans] == [(6, "parent_id", "orphan_message")]
    assert 'leads from "9" to no first message' in str(orphans[0])
    trees = [item for item in items if not isinstance(item, RowError)]
    assert [number for number, _ in trees] == [1, 5]
    chat, preference = convert(trees[0][1], ORIGIN, "oasst")
    assert chat.messages == [u("q"), a("A")]
    assert preference.answers == [[a("A")], [a("B")]]
    assert [type(r) for r in convert(trees[1][1], ORIGIN, "oasst")] == [Prompt]


def test_trees_are_joined_one_by_one():
    """Of messages with a tree's id no more than one tree is held."""
    taken = []

    def items():
        for number, row in enumerate(FLAT, 1):
            taken.append(number)
            yield number, row

    first = next(iter(detect.rows(items(), "oasst", "f")))
    assert first[0] == 1
    assert taken == [1, 2, 3, 4, 5]


def test_messages_that_hang_on_nothing_are_named():
    flat = [
        {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"},
        {"message_id": "2", "parent_id": "2", "text": "A", "role": "assistant"},
        {"message_id": "3", "parent_id": "4", "text": "B", "role": "assistant"},
        {"message_id": "4", "parent_id": "3", "text": "r", "role": "prompter"},
        {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"},
        {"message_id": [1], "parent_id": "1", "text": "C", "role": "assistant"},
        {"parent_id": {}, "text": "C", "role": "assistant"},
    ]
    errors = [item for item in detect.rows(enumerate(flat, 1), "oasst", "f") if isinstance(item, RowError)]
    assert sorted((e.origin.row, e.kind) for e in errors) == [
        (2, "orphan_message"), (3, "orphan_message"), (4, "orphan_message"), (5, "repeated_id"), (6, "wrong_type"), (7, "missing_field"),
    ]  # fmt: skip


def test_broken_rows_pass_the_join():
    broken = RowError(Origin("f", 2), None, "broken_json", "no")
    assert list(detect.rows([broken], "oasst", "f")) == [broken]


@pytest.mark.parametrize(
    ("row", "field", "kind", "sentence"),
    [
        (FLAT[2], "parent_id", "not_joined", "give the whole file"),
        (
            {"prompt": node("q", {"role": "assistant", "replies": []})},
            "prompt.replies[0].text",
            "null_field",
            "a string",
        ),
        ({"prompt": node("q", node("A", rank="x"))}, "prompt.replies[0].rank", "wrong_type", "a number"),
        (
            {"prompt": node("q", node("A", role="bot"))},
            "prompt.replies[0].role",
            "bad_value",
            "expected prompter or assistant",
        ),
        ({"prompt": node("A")}, "prompt.role", "bad_value", "who begins a tree"),
        ({"prompt": node("q", "A")}, "prompt.replies[0]", "wrong_type", "an object"),
        ({"prompt": {**node("q"), "replies": "A"}}, "prompt.replies", "wrong_type", "a list of messages"),
    ],
)
def test_mistakes_in_trees(row, field, kind, sentence):
    with pytest.raises(RowError) as e:
        convert(row, ORIGIN, "oasst", stated=True)
    assert (e.value.field, e.value.kind) == (field, kind)
    assert str(e.value).startswith("data.jsonl, row 7: ")
    assert sentence in str(e.value)


def test_a_tree_without_end_is_refused():
    tree = node("A")
    for i in range(300):
        tree = node("q" if i % 2 == 0 else "A", tree)
    with pytest.raises(RowError, match="deeper than 200"):
        convert({"prompt": node("q", tree)}, ORIGIN, "oasst")


# --- chat logs


def test_ratings_make_verdicts_and_bad_answers_are_not_trained():
    row = {"messages": [u("p"), a("x", rating="thumbs up"), u("q"), a("y", rating=0), u("r"), a("z")], "user": 3}
    chat, good, bad = read(row)
    assert chat == Chat(
        [u("p"), a("x"), u("q"), a("y"), u("r"), a("z")],
        [False, True, False, False, False, True],
        at(0),
        extra={"user": 3},
    )
    assert good == Verdict([u("p")], [a("x")], True, at(1), extra={"user": 3})
    assert bad == Verdict([u("p"), a("x"), u("q")], [a("y")], False, at(2), extra={"user": 3})


def test_an_edit_is_trained_and_stands_over_what_it_replaced():
    row = {"turns": [u("p"), a("old", rating="bad", edited="new"), u("q"), a("y", rating=False)]}
    chat, verdict, preference, other = read(row)
    assert (chat.messages, chat.trained) == ([u("p"), a("new"), u("q"), a("y")], [False, True, False, False])
    assert verdict == Verdict([u("p")], [a("old")], False, at(1))
    assert preference == Preference([u("p")], [[a("new")], [a("old")]], at(2))
    assert other.prompt == [u("p"), a("new"), u("q")]  # the conversation went on from the edit
    assert read({"turns": [u("p"), a("new", original="old")]})[-1] == Preference(
        [u("p")], [[a("new")], [a("old")]], at(1)
    )


def test_the_kept_answer_stands_over_those_thrown_away():
    row = {"conversation": [u("p"), a("kept", regenerations=["kept", "one", {"content": "two", "rating": "👎"}])]}
    chat, verdict, preference = read(row)
    assert chat.messages == [u("p"), a("kept")]
    assert verdict == Verdict([u("p")], [a("two")], False, at(1))
    assert preference == Preference([u("p")], [[a("kept")], [a("one")], [a("two")]], at(2), [1.0, 0.0, 0.0])


def test_a_kept_answer_rated_bad_stands_over_nothing():
    made = read({"messages": [u("p"), a("kept", rating="bad", alternatives=["one"])]})
    assert made == [Verdict([u("p")], [a("kept")], False, at(0))]
    made = read({"messages": [u("p"), a("kept", rating="bad", alternatives=[a("one", rating="good"), "two"])]})
    assert [r.good for r in made[:2]] == [False, True]
    assert made[2] == Preference([u("p")], [[a("one")], [a("kept")]], at(2))


def test_edits_with_regenerations_are_a_ranking():
    made = read({"messages": [u("p"), a("old", edited="new", regenerations=["one"])]})
    assert made[1] == Preference([u("p")], [[a("new")], [a("old")], [a("one")]], at(1), [2.0, 1.0, 0.0])


def test_logs_in_other_spellings():
    turns = [{"from": "human", "text": "p"}, {"from": "gpt", "value": "x", "feedback": {"value": "good"}}]
    assert read({"log": turns, "system": "s"}) == [
        Chat([{"role": "system", "content": "s"}, u("p"), a("x")], [False, False, True], at(0)),
        Verdict([{"role": "system", "content": "s"}, u("p")], [a("x")], True, at(1)),
    ]
    assert read({"prompt": "p", "response": "x", "edited": "y", "rating": 1}) == [
        Chat([u("p"), a("y")], [False, True], at(0)),
        Verdict([u("p")], [a("x")], True, at(1)),
        Preference([u("p")], [[a("y")], [a("x")]], at(2)),
    ]


@pytest.mark.parametrize(
    ("row", "field", "kind", "sentence"),
    [
        ({"messages": [u("p"), a("x", rating=4)]}, "messages[1].rating", "wrong_type", "stars"),
        ({"messages": [u("p"), a("x", edited=5)]}, "messages[1].edited", "wrong_type", "a string"),
        (
            {"messages": [u("p"), a("x", regenerations="y")]},
            "messages[1].regenerations",
            "wrong_type",
            "a list of answers",
        ),
        (
            {"messages": [u("p"), a("x", regenerations=[5])]},
            "messages[1].regenerations[0]",
            "wrong_type",
            "a string or a turn",
        ),
        ({"messages": [a("x", rating=1)]}, "messages", "no_prompt", "begins with an answer"),
        ({"prompt": "p", "response": "x", "edited": ["y"]}, "edited", "wrong_type", "a string"),
    ],
)
def test_mistakes_in_logs(row, field, kind, sentence):
    with pytest.raises(RowError) as e:
        convert(row, ORIGIN, "chatlog")
    assert (e.value.field, e.value.kind) == (field, kind)
    assert sentence in str(e.value)


# --- ChatGPT's export


def exported(id_, parent, role, text, *children, **message):
    content = {"content_type": "text", "parts": [text]}
    said = {"author": {"role": role}, "content": content, "recipient": "all", "metadata": {}, **message}
    return {id_: {"id": id_, "parent": parent, "children": list(children), "message": said}}


EXPORT = {
    "title": "t",
    "create_time": 1.5,
    "current_node": "a3",
    "mapping": {
        "root": {"id": "root", "parent": None, "children": ["s"], "message": None},
        **exported(
            "s", "root", "system", "hidden", "u1", "u0", metadata={"is_visually_hidden_from_conversation": True}
        ),
        **exported("u0", "s", "user", "q as first written"),
        **exported("u1", "s", "user", "q", "a1", "a2"),
        **exported("a1", "u1", "assistant", "thrown away"),
        **exported("a2", "u1", "assistant", "kept", "u2"),
        **exported("u2", "a2", "user", "look", "c"),
        **exported("c", "u2", "assistant", "search()", "r", recipient="browser"),
        **exported("r", "c", "tool", "found", "a3"),
        **exported("a3", "r", "assistant", "It says so."),
    },
}


def test_chatgpt_exports_are_logs():
    chat, preference = read(EXPORT)
    assert chat == Chat(
        [u("q"), a("kept"), u("look"), a("It says so.")], [False, True, False, False], at(0), extra={"title": "t"}
    )
    assert preference == Preference([u("q")], [[a("kept")], [a("thrown away")]], at(1), extra={"title": "t"})
    assert read({k: v for k, v in EXPORT.items() if k != "current_node"})[0] == chat


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"current_node": "z"}, "bad_value", 'no node "z"'),
        ({"mapping": {"x": {"parent": "x", "children": []}}, "current_node": "x"}, "bad_value", "every parent once"),
        ({"mapping": {"x": {"children": []}}, "current_node": "x"}, "empty_field", "says a word"),
        ({"mapping": exported("a3", None, "user", {"image": 1})}, "unsupported_part", "take this conversation out"),
        ({"mapping": {"a3": {"children": [], "message": "hi"}}}, "wrong_type", "an object"),
    ],
)
def test_mistakes_in_exports(change, kind, sentence):
    with pytest.raises(RowError) as e:
        convert({**EXPORT, **change}, ORIGIN, "chatgpt")
    assert e.value.kind == kind
    assert sentence in str(e.value)

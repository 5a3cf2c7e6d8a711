"""Repair: each mending on cases written by hand, what must not be touched, and what is dropped."""

import pytest

from tunesmith.data import mend, mend_turns
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import repair

AT = Origin("x.jsonl", 1)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"text": "cafÃ©\r\n"}}}


def turn(role, said, **more):
    return {"role": role, "content": said, **more}


def chat(*turns, trained=None):
    return Chat(list(turns), trained or [m["role"] == "assistant" for m in turns], AT)


def run(records, **options):
    rows = Rows(records)
    rows.step = "repair"
    return rows, repair.apply(rows, **options)


def doubled(text, encoding="cp1252"):
    """Return a text as it looks when its UTF-8 was read in another encoding."""
    return text.encode("utf-8").decode(encoding)


@pytest.mark.parametrize(
    "text",
    [
        "café au lait", "Zürich – Köln", "don’t", "“Wow,” she said…", "naïve façade", "10 °C ± 2", "smile 🙂 now", "Привет, мир",
        "你好，世界", "żółć zażółć", "price: 10 € each", "¿Qué? ¡Sí!", "Ελληνικά",
    ],
)  # fmt: skip
def test_mojibake_is_read_rightly(text):
    wrong = text.encode("utf-8").decode("latin-1")
    assert mend.mojibake(wrong) == text
    assert mend.mojibake(wrong.encode("utf-8").decode("latin-1")) == text  # twice double
    sloppy = "".join(
        bytes([b]).decode("cp1252") if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b) for b in text.encode()
    )
    assert mend.mojibake(sloppy) == text


@pytest.mark.parametrize(
    "text",
    [
        "café au lait, don’t “say” … 10 °C", "Привет", "你好", "la qualité\xa0»", "MENÜ“ und „KÄSE“", "”BLÅ”", "NÃO É, CORAÇÃO", "L’ÂME",
        "Â", "Ã", "é", "façade", "naïve", "مرحبا", "The letter é shows as Ã© in the wrong encoding.", "mojibake: â€™", "€ 10 – 20",
    ],
)  # fmt: skip
def test_whole_text_is_left_alone(text):
    assert mend.mojibake(text) == text


def test_a_closing_quote_that_lost_its_third_byte():
    assert mend.mojibake("â€œWow!â€ she said. â€œGo.â€") == "“Wow!” she said. “Go.”"
    assert mend.mojibake("â€ alone") == "â€ alone"


def test_mending_twice_changes_nothing_more():
    for text in ("cafÃ© \ufeff\x00x\r\ny", "â€œWow!â€", "&amp;amp;"):
        for function in (mend.mojibake, mend.control, mend.invisible, mend.line_ends):
            assert function(function(text)) == function(text)


def test_invisible_characters():
    assert mend.invisible("\ufeffa\u200bb\u2060c\u00add\u200e") == "abcd"
    assert mend.invisible("👨\u200d👩\u200d👧 می\u200cخواهم क्\u200dष") == "👨\u200d👩\u200d👧 می\u200cخواهم क्\u200dष"
    assert mend.invisible("שלום\u200f!") == "שלום\u200f!"
    assert mend.invisible("ภาษา\u200bไทย") == "ภาษา\u200bไทย"
    assert mend.invisible("admin\u202etxt.exe") == "admintxt.exe"


def test_control_characters():
    assert mend.control("a\x00b\x07c\x7fd\x85e\tf\n") == "abcd\x85e\tf\n"
    assert mend.control("\x1b[31mred\x1b[0m") == "red"
    assert mend.control("page\x0cpage") == "page\npage"
    assert mend.control("\x0crac{1}{2} \x08eta \x08egin{a} \x07lpha") == r"\frac{1}{2} \beta \begin{a} \alpha"


def test_line_ends():
    assert mend.line_ends("a\r\nb\rc\n") == "a\nb\nc\n"


def test_entities_only_where_they_are_an_artefact():
    assert mend.entities("Tom &amp; Jerry&#39;s &quot;show&quot; &lt; 3&nbsp;x") == 'Tom & Jerry\'s "show" < 3 x'
    for text in ("<p>Tom &amp; Jerry</p>", "In HTML write &lt; for less than", "AT&T &copy; &unknown;"):
        assert mend.entities(text) == text


def test_trim():
    assert mend.trim("\n \n    indented\nx \n\n") == "    indented\nx"
    assert mend.trim(" \n ") == ""


def test_code_is_never_touched():
    text = "cafÃ©\r\n```python\r\nx = 'cafÃ©\u200b'\r\n```\r\nand `Ã©\u200b` \u200b.\n~~~\n\x0c\r\n~~~\nend\r\n"
    record, done = repair.mended(Text(text, AT), {"mojibake", "line_ends", "invisible", "control"})
    assert record.text == "café\n```python\r\nx = 'cafÃ©\u200b'\r\n```\nand `Ã©\u200b` .\n~~~\n\x0c\r\n~~~\nend\n"
    assert done == ["mojibake", "line_ends", "invisible"]


def test_an_open_fence_is_code_to_its_end():
    assert mend.outside_code("a\r\n```\r\nb\r\n", mend.line_ends) == "a\n```\r\nb\r\n"


def test_arguments_of_tool_calls_are_data():
    record = chat(turn("user", "cafÃ©"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "ok\r\n"))
    new, _ = repair.mended(record, {"mojibake", "line_ends"})
    assert new.messages == [turn("user", "café"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "ok\n")]


def test_turns_are_put_in_order():
    record = chat(
        turn("user", "a"),
        turn("user", " "),
        turn("system", "be brief"),
        turn("user", "b"),
        turn("assistant", "c"),
        turn("assistant", "d"),
    )
    ways = set(repair._SAID) - {"trim"}
    new, done = repair.mended(record, ways)
    assert new.messages == [turn("system", "be brief"), turn("user", "a\n\nb"), turn("assistant", "c\n\nd")]
    assert new.trained == [False, False, True]
    assert done == ["empty_turns", "move_system", "merge_turns"]
    assert repair.mended(new, ways) == (new, [])


def test_what_is_not_merged():
    kept = [
        (turn("assistant", "a"), True), (turn("assistant", "b"), False),
        (turn("assistant", "", tool_calls=[CALL]), True), (turn("tool", "1"), False), (turn("tool", ""), False),
        (turn("assistant", "x", reasoning_content="hm"), True), (turn("assistant", "y"), True),
    ]  # fmt: skip
    assert mend_turns.merged(kept, "\n\n") == kept
    assert mend_turns.without_empty(kept) == kept


def test_turns_of_other_kinds():
    prompt = [turn("user", "a"), turn("user", "b")]
    answers = [[turn("assistant", "x")], [turn("assistant", "y")], [turn("assistant", "x")]]
    new, done = repair.mended(Preference(prompt, answers, AT, scores=[3.0, 2.0, 3.0]), set(repair._SAID))
    assert new == Preference([turn("user", "a\n\nb")], answers[:2], AT, scores=[3.0, 2.0])
    assert done == ["merge_turns", "equal_answers"]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Text(" \n", AT), "the text is empty"),
        (chat(turn("user", "a")), "no answer to learn from"),
        (chat(turn("user", "a"), turn("assistant", "b"), trained=[False, False]), "no answer to learn from"),
        (
            chat(turn("user", "a"), turn("tool", "b"), turn("assistant", "c")),
            "turn 2 is a tool's result without a call before it",
        ),
        (
            chat(
                turn("assistant", "", tool_calls=[{"id": "c1", **CALL}]),
                turn("tool", "1", tool_call_id="c2"),
                turn("assistant", "c"),
            ),
            "turn 2 is the result of a tool call that is not there (tool_call_id)",
        ),
        (
            Preference([turn("user", "a")], [[turn("assistant", "b")], [turn("assistant", "b ")]], AT),
            "the chosen and the rejected answer are the same",
        ),
        (
            Preference([turn("user", "a")], [[turn("assistant", "b")], [turn("assistant", "")]], AT),
            "one of the answers is empty",
        ),
        (Verdict([turn("user", "a")], [turn("assistant", " ")], True, AT), "the answer is empty"),
        (Prompt([turn("user", "")], AT), "the prompt is empty"),
    ],
)
def test_rows_that_nothing_can_be_learnt_from(record, why):
    rows, facts = run([record, Text("ok", AT)])
    assert [(f.id, f.action, f.reason) for f in rows.fates] == [(0, "drop", why)]
    assert facts["numbers"]["nothing_to_learn"] == 1
    assert len(run([record], drop_useless=False)[0]) == 1


def test_rows_that_something_can_be_learnt_from():
    call = turn("assistant", "", tool_calls=[{"id": "c1", **CALL}])
    records = [
        chat(turn("user", "a"), call),
        chat(
            turn("user", "a"),
            call,
            turn("tool", "", tool_call_id="c1"),
            turn("tool", "2", tool_call_id="c1"),
            turn("assistant", "b"),
        ),
        chat(turn("user", "a"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "1"), turn("assistant", "b")),
        Prompt([turn("user", "a")], AT),
        Preference([turn("user", "a")], [[turn("assistant", "b")], [call]], AT),
    ]
    assert len(run(records)[0]) == len(records)
    assert list(run(records)[0].fates) == []


def test_the_step_says_what_it_mended():
    rows, facts = run([Text("cafÃ©\r\n", AT), Text("whole", AT), Text("", AT)])
    assert [(f.id, f.action, f.reason, f.facts) for f in rows.fates] == [
        (0, "change", "mended text read in the wrong encoding, line ends", {"mended": ["mojibake", "line_ends"]}),
        (2, "drop", "the text is empty", {}),
    ]
    assert rows[0].text == "café\n"
    assert facts["numbers"] == {"mended_line_ends": 1, "mended_mojibake": 1, "nothing_to_learn": 1}
    assert facts["summary"] == "1 row mended; 1 that nothing can be learnt from dropped."


def test_switched_off_it_changes_nothing():
    options = dict.fromkeys(
        ("mojibake", "line_ends", "control", "invisible", "empty_turns", "move_system", "merge_turns"), False
    )
    record = chat(turn("user", "cafÃ©\r\n\u200b"), turn("user", ""), turn("system", "s"), turn("assistant", "a"))
    rows, _ = run([record], **options)
    assert list(rows.fates) == []


def test_real_stories_are_mended(shared):
    from tunesmith.data.sources import load

    records = load([str(shared / "data/text/tinystories/tinystories_1000.json")]).records
    rows, facts = run(records)
    print(f"\nrepair: TinyStories: {facts['summary']}")
    assert facts["numbers"]["mended_mojibake"] == 82
    left = [i for i, r in rows if "â€" in r.text]
    assert len(left) == 1  # one lone closing quote, whose opening one is missing
    whole = [i for i, r in enumerate(records) if not any(ord(c) > 127 for c in r.text)]
    assert all(rows[i].text == records[i].text for i in whole)

"""Quality: measures by hand, each rule's row found, and nothing lost of other scripts, code, sums, tables and songs."""

import pytest

from tunesmith.data import stats
from tunesmith.data.ngrams import words
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import quality

AT = Origin("x.jsonl", 1)
PROSE = (
    "Rivers shape the land in many ways. They carry sand and stones from the hills to the sea, and where the water slows the "
    "load sinks and builds islands. Farmers have lived beside them for thousands of years, since floods leave rich soil behind. "
    "A dam holds back both water and sand, so the coast below may shrink while the lake above fills with mud."
)


def turn(role, said):
    return {"role": role, "content": said}


def chat(answer, asked="Say it."):
    return Chat([turn("user", asked), turn("assistant", answer)], [False, True], AT)


def run(records, **options):
    rows = Rows(records)
    rows.step = "quality"
    return rows, quality.apply(rows, **options)


def reasons(answer, **options):
    return [f.reason for f in run([chat(answer)], **options)[0].fates]


def test_repeated_lines_by_hand():
    assert stats.repeated(["a", "bbb", "a", "a"]) == (2 / 4, 2 / 6)
    assert stats.repeated([]) == (0, 0)


def test_top_run_by_hand():
    assert stats.top_run(["aa", "b", "aa", "b", "c"], 2) == 6 / 7  # "aa b" twice: 2 x 3 of 7 letters
    assert stats.top_run(["a", "b", "c"], 2) == 0


def test_repeated_runs_by_hand():
    found = ["a", "b", "c", "d", "e", "a", "b", "c", "d", "e", "x"]
    assert stats.repeated_runs(found, 5) == 5 / 11  # the second "a b c d e"
    assert stats.repeated_runs(found[:9], 5) == 0


def test_symbols_by_hand():
    assert stats.symbols("a+b !") == 2 / 4
    assert stats.symbols("é 水 ก็ ") == 0  # marks that belong to letters are no symbols
    assert stats.symbols("") == 0


def test_gopher_measures_of_prose_are_low_and_of_a_loop_high():
    low, high = stats.repetition(PROSE), stats.repetition("I am a good model and I like to help. " * 12)
    assert all(low[name] <= limit for name, limit in stats.GOPHER.items())
    assert max(high[name] / limit for name, limit in stats.GOPHER.items()) > 5
    assert stats.repetition("hello " * 40) == dict.fromkeys(stats.GOPHER, 0.0)  # too few words to say


def test_rules_find_their_rows():
    loop = reasons("I am a good model and I like to help. " * 12)
    assert len(loop) == 1
    assert loop[0].endswith("% of the text")
    assert reasons("#$%&!?" * 20) == ["100% of the characters are symbols, at most 75% wanted"]
    page = "We use cookies to give you the best experience.\nSubscribe to our newsletter today.\nAll rights reserved."
    assert reasons(page) == ["100% of the text is boilerplate of web pages"]
    assert reasons("So " + "very " * 29 + "old.") == []
    assert reasons("So " + "very " * 30 + "old.") == ["one word stands 30 times in a row"]
    assert reasons("b" + "a" * 100) == ["one letter stands 100 times in a row"]
    assert reasons("\ufffd" * 5) == ["100% of the characters are symbols, at most 75% wanted"]
    assert reasons("Yes.", min_chars=10) == ["answer of 4 characters, at least 10 wanted"]
    assert reasons("one two three", max_words=2) == ["answer of 3 words, at most 2 wanted"]
    assert reasons(PROSE, max_chars=20) == [f"answer of {len(PROSE)} characters, at most 20 wanted"]
    assert reasons(PROSE, min_words=500) == [f"answer of {len(words(PROSE))} words, at least 500 wanted"]


GOOD = {
    "prose": PROSE,
    "one word": "positive",
    "number": "42",
    "sum": "Let x = 3 and y = 4. Then x^2 + y^2 = 9 + 16 = 25, so the root is 5.\n" * 2,
    "latex": r"\[ \int_0^1 x^2 \, dx = \left[ \frac{x^3}{3} \right]_0^1 = \frac{1}{3} \]",
    "code": "```python\n" + "x += 1\nif x > 3:\n    print(x)\n" * 30 + "```",
    "html": "<html>\n<body>\n" + "<div>\n<p></p>\n</div>\n" * 20 + "</body>\n</html>",
    "regex": r"^(?:(\+44\s?\d{4}|\(?0\d{4}\)?)\s?\d{3}\s?\d{3})$",
    "table": "| a | b |\n|---|---|\n" + "| yes | no |\n" * 30,
    "truth table": "T F T F T\n" * 30,
    "chorus": "\n".join(
        [PROSE, "Oh river, carry me home,", PROSE.replace("Rivers", "Hills")[:150], "Oh river, carry me home,"]
    ),
    "chinese": "水是生命之源，人类离不开水，我们应当节约每一滴水，保护河流和湖泊，让子孙后代也能喝到干净的水。" * 2,
    "japanese": "川沿いの古い水車小屋は、昨年、若者たちのグループによって再建されました。今ではパンを焼いています。",
    "arabic": "أعيد بناء الطاحونة القديمة على ضفة النهر في العام الماضي من قبل مجموعة من الشباب الذين يخبزون فيها الخبز.",
    "thai": "โรงสีเก่าริมแม่น้ำถูกสร้างขึ้นใหม่เมื่อปีที่แล้วโดยกลุ่มคนหนุ่มสาวที่ต้องการอบขนมปังด้วยกัน",
    "hindi": "नदी के किनारे की पुरानी चक्की को पिछले साल युवाओं के एक समूह ने फिर से बनाया था और वे वहाँ रोटी पकाते हैं।",
    "emoji": "Well done! 🎉🎉🎉 See you soon 🙂",
    "list": "\n".join(f"- item {i}" for i in range(40)),
    "call to subscribe": "Subscribe to our newsletter today!",
    "notice": "All rights reserved. By using this site you accept our terms of use and our privacy policy.",
    "drawing": "+--------------+\n|              |\n|              |\n+--------------+",
    "morse": "... --- ... / .... . .-.. .--. / -- . / ... --- ... / .... . .-.. .--. / -- .",
    "signs of a small language": "++++++++[>++++++++<-]>+." * 5,
    "a story in emoji": "🚢🌊🧊💥😱🆘🛟👫💔🎻🕯️" * 5,
    "zeros": "0 " * 400,
}


@pytest.mark.parametrize("what", GOOD)
def test_good_answers_of_every_kind_stay(what):
    assert reasons(GOOD[what]) == []


def test_refusals_are_counted_and_dropped_where_asked():
    refusals = [
        "As an AI language model, I cannot do that.",
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but as an AI I do not have feelings.",
        "Sorry, I cannot assist with this request.",
        "I cannot provide medical advice.",
    ]
    others = ["I'm sorry to hear that. Try this instead.", "As a cook, I would salt it.", "I can't wait to see it!"]
    records = [chat(t) for t in refusals + others]
    rows, facts = run(records)
    assert len(rows) == len(records)
    assert facts["numbers"]["refusals"] == len(refusals)
    rows, facts = run(records, refusals="drop")
    assert [f.id for f in rows.fates] == list(range(len(refusals)))
    assert facts["numbers"]["dropped_refusal"] == len(refusals)


def test_unfinished_answers():
    assert stats.unfinished(PROSE[:-40])
    assert stats.unfinished("Here it is:\n```python\nprint(1)")
    assert not stats.unfinished(PROSE)
    assert not stats.unfinished(PROSE + "\n- eggs\n- milk")
    assert not stats.unfinished("Paris")
    assert [f.facts["rule"] for f in run([chat(PROSE[:-40])], unfinished="drop")[0].fates] == ["unfinished"]


def test_c4_rules_are_for_plain_text_only():
    short, page = Text("A single line without an end", AT), Text(PROSE, AT)
    rows, _ = run(
        [short, page, Text("var x = {};", AT), Text("This page needs Javascript. Now. Yes.", AT), chat("short")],
        c4=True,
    )
    assert [(f.id, f.reason) for f in rows.fates] == [
        (0, "has 0 whole sentences, C4 wants 3"),
        (2, "holds a curly bracket"),
        (3, 'holds the word "javascript"'),
    ]


def test_bad_answers_are_there_to_be_bad():
    loop = "I am a good model and I like to help. " * 12
    asked, good, bad = [turn("user", "Hm?")], [turn("assistant", PROSE)], [turn("assistant", loop)]
    records = [Preference(asked, [good, bad], AT), Verdict(asked, bad, False, AT), Prompt(asked, AT)]
    assert len(run(records)[0]) == 3
    records = [Preference(asked, [bad, good], AT), Verdict(asked, bad, True, AT)]
    assert len(run(records)[0]) == 0


def test_columns_and_histograms():
    rows, facts = run([chat("one two three"), Prompt([turn("user", "x")], AT)])
    assert rows.columns["answer_words"][0] == 3
    assert rows.columns["answer_chars"][0] == 13
    assert rows.columns["answer_words"][1] != rows.columns["answer_words"][1]
    for histogram in facts["histograms"]:
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
        assert sum(histogram["counts"]) == 1


def test_defaults_drop_almost_nothing_of_good_sets(shared):
    from tunesmith.data.sources import load

    for name in ("instruction/stanford_alpaca_5000/alpaca_5000.json", "instruction/rasbt/instruction-data.json"):
        records = load([str(shared / "data" / name)]).records[:1500]
        rows, facts = run(records)
        print(f"\nquality: {name}: {len(records) - len(rows)} of {len(records)} dropped; {facts['summary']}")
        assert len(rows) >= 0.998 * len(records)

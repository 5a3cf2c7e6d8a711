"""Language: told on sentences of several scripts, unknown of code and numbers, and what keep drops."""

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Text
from tunesmith.data.rows import Rows
from tunesmith.data.steps import language
from tunesmith.errors import InputError

SAID = {
    "en": "The old mill by the river was built again last year by a group of young people.",
    "de": "Die alte Mühle am Fluss wurde im vergangenen Jahr von jungen Leuten wieder aufgebaut.",
    "fr": "Le vieux moulin au bord de la rivière a été reconstruit l'année dernière par des jeunes.",
    "ru": "Старая мельница у реки была восстановлена в прошлом году группой молодых людей.",
    "zh": "河边的老磨坊去年由一群年轻人重新建造起来，现在他们在那里一起烤面包。",
    "ja": "川沿いの古い水車小屋は、昨年、若者たちのグループによって再建されました。",
    "ar": "أعيد بناء الطاحونة القديمة على ضفة النهر في العام الماضي من قبل مجموعة من الشباب.",
    "th": "โรงสีเก่าริมแม่น้ำถูกสร้างขึ้นใหม่เมื่อปีที่แล้วโดยกลุ่มคนหนุ่มสาว",
    "hi": "नदी के किनारे की पुरानी चक्की को पिछले साल युवाओं के एक समूह ने फिर से बनाया था।",
}
NONE = {
    "code": "```python\nfor name in names:\n    print(name)\n```",
    "bare code": "def area(r):\n    return 3.14 * r * r\n\nimport math\nclass Disc(Shape):",
    "numbers": "12 + 35 = 47, 1023 / 11 = 93",
    "short": "Paris",
    "link": "https://example.org/some/long/path/to/a/page.html",
    "empty": "",
}


def chat(asked, answered):
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat(turns, [False, True], Origin("x.jsonl", 1))


def run(records, **options):
    rows = Rows(records)
    rows.step = "language"
    return rows, language.apply(rows, **options)


@pytest.mark.parametrize("code", SAID)
def test_sentences_are_told(code):
    assert language.detect(language.prose(Text(SAID[code], Origin("x", 1))))[0] == code


@pytest.mark.parametrize("what", NONE)
def test_what_is_of_no_language_is_unknown(what):
    assert language.detect(language.prose(Text(NONE[what], Origin("x", 1))))[0] == "unknown"


def test_it_only_counts_unless_asked():
    rows, facts = run([Text(said, Origin("x", i)) for i, said in enumerate([*SAID.values(), *NONE.values()])])
    assert len(rows) == len(SAID) + len(NONE)
    table = {row[0]: row[2] for row in facts["tables"][0]["rows"]}
    assert table == {**dict.fromkeys(SAID, 1), "unknown": len(NONE)}
    codes = [language.languages()[int(v)] for v in rows.columns["language"][: len(SAID)]]
    assert codes == list(SAID)
    assert np.isnan(rows.columns["language"][len(SAID) :]).all()


def test_keep_drops_the_others_and_says_what_it_found():
    rows, facts = run(
        [Text(said, Origin("x", i)) for i, said in enumerate([*SAID.values(), *NONE.values()])], keep=["en", "de"]
    )
    assert [f.id for f in rows.fates] == list(range(2, len(SAID)))
    assert rows.fates[0].reason.startswith("language fr (confidence ")
    assert rows.fates[0].reason.endswith(", wanted en or de")
    assert facts["numbers"]["dropped"] == len(SAID) - 2
    rows, _ = run([Text(said, Origin("x", i)) for i, said in enumerate(NONE.values())], keep=["en"], keep_unknown=False)
    assert len(rows) == 0


def test_an_answer_decides_before_its_prompt():
    asked = "Translate to German: " + SAID["en"]
    assert language.detect(language.prose(chat(asked, SAID["de"] * 8)))[0] == "de"


def test_wrong_codes_are_refused():
    with pytest.raises(InputError, match='keep: no language has the code "english"'):
        language.check(keep=["english"])
    with pytest.raises(InputError, match="would drop every row"):
        language.check(keep=[])
    language.check(keep=["en", "unknown"])


def test_an_english_set_is_english(shared):
    from tunesmith.data.sources import load

    records = load([str(shared / "data/instruction/stanford_alpaca_5000/alpaca_5000.json")]).records[:600]
    found = [language.detect(language.prose(r))[0] for r in records]
    print(f"\nlanguage: {found.count('en')} of {len(found)} en, {found.count('unknown')} unknown")
    assert found.count("en") + found.count("unknown") >= 0.995 * len(found)
    assert found.count("en") >= 0.95 * len(found)

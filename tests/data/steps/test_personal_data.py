"""The step personal_data: every place of a record, one person one pseudonym, nothing personal in what is reported."""

import dataclasses
import json
import re
import sys
import types

import pytest

from tunesmith.data import personal, recipe
from tunesmith.data.content import texts
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import personal_data
from tunesmith.errors import InputError

MAIL, SSN, PHONE = "ada.byron@acme.org", "123-45-6789", "415-867-5309"


def text(said, row=1, **extra):
    return Text(said, Origin("x.jsonl", row), extra)


def turn(role, said):
    return {"role": role, "content": said}


def every_kind():
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "mail", "arguments": {"to": MAIL, "n": [1, {"cc": MAIL}]}},
    }
    raw = {"id": "c2", "type": "function", "function": {"name": "mail", "arguments": json.dumps({"to": MAIL})}}
    chat = [
        turn("user", f"write {MAIL}"),
        {**turn("assistant", ""), "reasoning_content": f"to {MAIL}", "tool_calls": [call, raw]},
    ]
    at = [Origin("x.jsonl", i) for i in range(1, 6)]
    return [
        text(f"at {MAIL}", seen=[MAIL, 3], deep={"by": MAIL}),
        Chat(chat, [False, True], at[1], tools=[{"function": {"name": "mail", "description": f"e.g. {MAIL}"}}]),
        Preference([turn("user", MAIL)], [[turn("assistant", MAIL)], [turn("assistant", "no")]], at[2]),
        Verdict([turn("user", MAIL)], [turn("assistant", MAIL)], True, at[3]),
        Prompt([turn("user", "whose?")], at[4], reference=MAIL),
    ]


def run(records, **options):
    rows = Rows(records)
    rows.step = "personal_data"
    facts = personal_data.apply(rows, **options)
    return rows, [r for _, r in rows], facts


def test_every_place_of_every_kind_and_the_same_pseudonym():
    records = every_kind()
    _, after, facts = run(records)
    said = json.dumps([dataclasses.asdict(r) for r in after])
    assert MAIL not in said
    assert facts["numbers"] == {"values": 14, "distinct": 1, "rows": 5}
    names = set(re.findall(r"person-\w+@example\.com", said))
    assert len(names) == 1
    assert json.loads(after[1].messages[1]["tool_calls"][1]["function"]["arguments"]) == {"to": names.pop()}
    assert after[1].messages[1]["tool_calls"][0]["function"]["name"] == "mail"


def test_nothing_else_changes_and_clean_records_stay_themselves():
    dirty = f"  Tabs\t{MAIL}\r\n\u200bünï «{SSN}»\n\n"
    records = [text(dirty), text("clean")]
    rows, after, _ = run(records)
    assert after[1] is records[1]
    left, middle, right = dirty.partition(MAIL)[0], after[0].text, dirty.rpartition(SSN)[2]
    assert middle.startswith(left)
    assert middle.endswith(right)
    assert "\r\n\u200bünï «999-0" in middle
    assert [f.id for f in rows.fates] == [0]


def test_twice_is_once():
    _, once, _ = run(every_kind())
    rows, twice, facts = run(once)
    assert twice == once
    assert not list(rows.fates)
    assert facts["numbers"]["values"] == 0


def test_the_seed_and_the_key_decide(monkeypatch):
    def said(**options):
        return run([text(MAIL)], **options)[1][0].text

    assert said(seed=1) == said(seed=1) != said(seed=2)
    monkeypatch.setenv("OWN_KEY", "mine")
    keyed = said(seed=1, key="OWN_KEY")
    assert keyed == said(seed=2, key="OWN_KEY") != said(seed=1)
    monkeypatch.delenv("OWN_KEY")
    with pytest.raises(
        InputError, match=r"personal_data\.key names the environment variable OWN_KEY, which is not set"
    ):
        personal_data.check(key="OWN_KEY")


def test_modes():
    records = [text(f"{MAIL} {SSN}"), text("clean")]
    assert run(records, mode="mask")[1][0].text == "<EMAIL> <SSN>"
    rows, after, _ = run(records, mode="drop")
    assert after == [records[1]]
    assert [f.reason for f in rows.fates] == ["holds personal data (1 email, 1 ssn)"]
    rows, after, facts = run(records, mode="report")
    assert after == records
    assert not list(rows.fates)
    assert facts["tables"][0]["rows"] == [["email", 1, 1, 1], ["ssn", 1, 1, 1]]


def test_kinds_and_allowed_values():
    said = f"{MAIL} and jo@other.org, {SSN}"
    assert run([text(said)], mode="mask", kinds=["ssn"])[1][0].text == f"{MAIL} and jo@other.org, <SSN>"
    assert run([text(said)], mode="mask", allow=["ACME.org"])[1][0].text == f"{MAIL} and <EMAIL>, <SSN>"
    assert run([text(said)], mode="mask", allow=[SSN])[1][0].text == f"<EMAIL> and <EMAIL>, {SSN}"
    with pytest.raises(InputError, match=r'there is no kind "emial"\. Did you mean "email"'):
        personal_data.check(kinds=["emial"])


def test_a_fields_name_is_context():
    bare = text("x", ssn="123456789", order="123456780", phone_number="4158675309", password="hunter2")
    after = run([bare], mode="mask")[1][0]
    assert after.extra == {"ssn": "<SSN>", "order": "123456780", "phone_number": "<PHONE>", "password": "<PASSWORD>"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"passportNumber": "C01X00T47"}}}
    chat = Chat([turn("user", "go"), {**turn("assistant", ""), "tool_calls": [call]}], [False, True], Origin("x", 1))
    after = run([chat], mode="mask")[1][0]
    assert after.messages[1]["tool_calls"][0]["function"]["arguments"] == {"passportNumber": "<DOCUMENT>"}


def test_reports_hold_no_personal_data():
    values = [MAIL, SSN, PHONE, "hunter2", "Ada Byron", "AKIAIOSFODNN7EXAMPLE"]
    said = f"My name is Ada Byron. {MAIL} {SSN} {PHONE} password: 'hunter2' AKIAIOSFODNN7EXAMPLE"
    for mode in ("pseudonym", "mask", "drop", "report"):
        rows, _, facts = run([text(said)], mode=mode)
        told = json.dumps([facts, [[f.reason, f.facts] for f in rows.fates]])
        assert not [v for v in values if v in told]
        assert facts["numbers"]["values"] == 6


def test_presidio_adds_what_it_finds(monkeypatch):
    """A stand-in for presidio: it finds the words after "Mr", and numbers that ours prove better."""
    asked = []

    class Engine:
        def get_supported_entities(self, language):
            return ["PERSON", "US_SSN", "DATE_TIME"]

        def analyze(self, text, language, entities, score_threshold):
            asked.append((language, entities, score_threshold))
            spans = [("PERSON", m) for m in re.finditer(r"(?<=Mr )\w+", text)]
            spans += [("US_SSN", m) for m in re.finditer(r"\d{3}-\d{2}", text)]
            return [types.SimpleNamespace(entity_type=k, start=m.start(), end=m.end(), score=0.9) for k, m in spans]

    monkeypatch.setitem(sys.modules, "presidio_analyzer", types.SimpleNamespace(AnalyzerEngine=Engine))
    record = text(f"Mr Okoye has {SSN}")
    assert run([record], engine="presidio", mode="mask")[1][0].text == "Mr <NAME> has <SSN>"
    once = run([record], engine="presidio")[1]
    assert run(once, engine="presidio")[1] == once  # it finds Mr's invented name, which is ours
    assert asked[0] == ("en", ["PERSON", "US_SSN"], 0.5)


def test_presidio_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(InputError, match=r"presidio is not installed; pip install 'tunesmith\[presidio\]'"):
        personal_data.check(engine="presidio")

    def without_model():
        raise SystemExit(1)

    monkeypatch.setitem(sys.modules, "presidio_analyzer", types.SimpleNamespace(AnalyzerEngine=without_model))
    with pytest.raises(InputError, match="English model is not installed; python -m spacy download en_core_web_lg"):
        personal_data.check(engine="presidio")


def test_on_a_real_file(shared):
    """Tool calls with planted-looking mails: every one goes, and arguments written as JSON stay JSON."""
    from tunesmith.data.sources import load

    file = shared / "data" / "instruction" / "llamafactory" / "glaive_toolcall_en_demo.json"
    if not file.is_file():
        pytest.skip("needs the shared data")
    records = list(load([str(file)]).records)
    _, after, facts = run(records)
    assert facts["numbers"]["values"] >= 60
    left = [f for record in after for _, said in texts(record) for f in personal.find(said)]
    assert left == []
    for old, new in zip(records, after, strict=True):
        for (place, was), (_, now) in zip(texts(old), texts(new), strict=True):
            if ".arguments" in place and was.lstrip().startswith("{"):
                json.loads(now)


def test_a_person_named_once_is_the_same_wherever_the_row_speaks_of_them():
    at = Origin("x.jsonl", 1)
    chat = Chat(
        [
            turn("user", "My name is Ada Byron. Split: Ada sat down."),
            turn("assistant", "Ada | sat. Adaptation; Byron's"),
        ],
        [False, True],
        at,
        extra={"by": "Ada Byron"},
    )
    _, (after,), facts = run([chat])
    first, last = re.search(r"is (\w+) (\w+)\.", after.messages[0]["content"]).groups()
    assert after.messages[0]["content"] == f"My name is {first} {last}. Split: {first} sat down."
    assert after.messages[1]["content"] == f"{first} | sat. Adaptation; {last}'s"
    assert after.extra == {"by": f"{first} {last}"}
    assert facts["numbers"]["values"] == 5


def test_ordinary_words_that_are_names_too_stay_elsewhere():
    _, (after,), _ = run([text("My name is Will. Will you come?")])
    assert after.text.endswith(". Will you come?")
    assert "is Will." not in after.text


def test_a_password_said_again_is_replaced_again():
    _, (after,), _ = run([text("Password: hunter22x\nLogged in with hunter22x.")], mode="mask")
    assert after.text == "Password: <PASSWORD>\nLogged in with <PASSWORD>."


def test_numbers_of_extra_fields_are_looked_at():
    _, (after,), _ = run([text("x", phone=4158675309, ssn=123456789, count=4158675309 * 7, small=12, flag=True)])
    assert isinstance(after.extra["phone"], int)
    assert str(after.extra["phone"]).startswith("999")
    assert str(after.extra["ssn"]).startswith("999")
    assert after.extra["count"] == 4158675309 * 7
    assert (after.extra["small"], after.extra["flag"]) == (12, True)


def test_the_value_of_the_key_is_part_of_the_recipe_and_not_in_it(monkeypatch, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')

    def made(value):
        monkeypatch.setenv("OWN_KEY", value)
        return recipe.make(str(tmp_path / "x.jsonl"), {"personal_data": {"key": "OWN_KEY"}}, 0)

    one, other = made("mine-is-long"), made("yours-is-longer")
    assert recipe.fingerprint(one) != recipe.fingerprint(other)
    assert recipe.fingerprint(one) == recipe.fingerprint(made("mine-is-long"))
    assert "mine-is-long" not in json.dumps(one)


@pytest.mark.parametrize(
    "said",
    [
        "My name is Zora Quill, an AI assistant made by Acme.",
        "I am Zora Quill, your virtual assistant.",
        "My name is MyBot.",
    ],
)
def test_a_model_that_says_its_name_is_nobody(said):
    assert personal.find(said) == []

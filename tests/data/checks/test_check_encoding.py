"""Damaged characters are found, by kind and in words; what only looks damaged is not."""

import pytest

from tunesmith.data.checks import encoding
from tunesmith.data.checks.found import Found


def damage(text: str) -> str:
    """Read UTF-8 as Windows-1252, as careless programs do (what it lacks as Latin-1)."""
    return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in text.encode())


@pytest.mark.parametrize(
    "text", ["café", "it’s", "“so” – he said", "€ 5", "Łódź is far", "Привет", "Ελλάδα", "😀 yes", "a\u00a0b", "CÔTÉ"]
)
def test_mojibake_of_any_text_is_found(kinds, text):
    assert kinds(encoding.check, {"text": f"We know that {damage(text)} of old."}) == [(1, "mojibake")]
    assert kinds(encoding.check, {"text": f"We know that {text} of old."}) == []


def test_the_character_that_was_meant_is_told(items):
    found = Found()
    encoding.check(items({"instruction": "a", "output": "the cafÃ© closed"})[0], found)
    (problem,) = found.problems()
    assert problem["message"] == '"Ã©" looks like UTF-8 read as Windows-1252 (it was "é").'
    assert (problem["field"], problem["sample"]) == ("output", "the cafÃ© closed")


@pytest.mark.parametrize(
    "text",
    [
        "CAFÉ” and SPÖ–ÖVP, NÃO, AMANHÃ, São João, Ângela, ÂME, Çelik, «Ça va», 20 °C, £5, naïve…",
        "The family 👨‍👩‍👧 met; می‌خواهم; हिन्दी में क्‍या.",
        "Fish & chips, AT&T; x<y && y>z; a&b=c&d=e",
        "In HTML write &amp; for an ampersand: <b>fish &amp; chips</b>",
        "```\n&nbsp;\n```",
        "print('a\\nb')",
        "$\\nu$ and \\nabla, C:\\new\\names",
        "split lines by '\\n\\n' please",
        "a\tb\r\nc",
    ],
)
def test_what_only_looks_damaged(kinds, text):
    assert kinds(encoding.check, {"text": text}) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a \ufffd b", "replacement_character"),
        ("the \x0crac of it", "control_character"),
        ("a \x85 b \x9d", "control_character"),
        ("a\u200bb", "invisible_character"),
        ("\ufeffa", "invisible_character"),
        ("so\u00adft", "invisible_character"),
        ("a\u200db", "invisible_character"),
        ("It&#39;s", "html_entity"),
        ("so &nbsp; isn&#39;t", "html_entity"),
        ("a&nbsp;b &quot;c&quot;", "html_entity"),
        ("Dear all,\\n\\nHello.\\nBye", "escaped_newline"),
    ],
)
def test_each_kind(kinds, text, kind):
    assert kinds(encoding.check, {"text": text}) == [(1, kind)]


@pytest.mark.parametrize(
    ("prompt", "answer", "kinds_found"),
    [
        ("Tell me of it.", '<div class="c"><p>It stands there.</p></div>', ["html_tag"]),
        ("Tell me of it.", "It stands there.<br/>Still.", ["html_tag"]),
        ("Write a page in HTML.", "<p>It stands there.</p>", []),
        ("Write a component.", "function App() { return <p>It stands there.</p> }", []),
        ("Tell me of it.", "```\n<p>It</p>\n```", []),
        ("Tell me of it.", "a < b and <noun> > c", []),
    ],
)
def test_tags_that_nobody_asked_for(kinds, prompt, answer, kinds_found):
    assert [kind for _, kind in kinds(encoding.check, {"prompt": prompt, "completion": answer})] == kinds_found


def test_samples_show_what_is_unseen(items):
    found = Found()
    encoding.check(items({"text": "word " * 30 + "a\u200bb\nnext"})[0], found)
    assert found.problems()[0]["sample"].endswith("a<U+200B>b next")

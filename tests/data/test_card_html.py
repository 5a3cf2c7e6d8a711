"""The data card's page: whole without a network, escapes what rows say, leaves out what there is not, and never shows personal data."""

import json
import re
from html.parser import HTMLParser

import pytest

from tunesmith.data import card_html
from tunesmith.data.prepare import run

VOID = {"meta", "link", "br", "input", "hr", "img"}


class Tags(HTMLParser):
    """Checks that every tag is closed where it should be; `texts` is what is read."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


@pytest.fixture
def page(tmp_path):
    rows = [
        {"instruction": f"Explain why the {word} <b>bold</b> & loud river number {i} matters to town {word}{i}.",
         "output": f"It carries {word} water past {i} mills, <script>alert({i})</script> and a bridge; write to kim{i}@corp-mail.com."}
        for i, word in enumerate(["green", "swift", "broad", "silent", "muddy", "narrow", "frozen", "winding"] * 4)
    ]  # fmt: skip
    rows += [rows[3], {"instruction": "No answer here", "output": ""}]
    file = tmp_path / "rows & more.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\nbroken {\n")
    run(str(file), {}, tmp_path / "set")
    return tmp_path / "set", (tmp_path / "set" / "card.html").read_text()


def test_the_page_is_well_formed_and_says_what_the_card_says(page):
    folder, html = page
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    text = " ".join(tags.texts)
    card = json.loads((folder / "card.json").read_text())
    assert f"{card['rows']['kept']} rows from rows & more.jsonl" in text
    for step in card["steps"]:
        assert step["name"] in text
        assert step["facts"]["summary"] in text
    for file in card["files"]:
        assert file["path"] in text
        assert file["sha256"][:16] in text
    assert "line 35 is broken JSON" in text
    assert card["sha256"] in text


def test_it_loads_nothing_and_runs_nothing(page):
    _, html = page
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "<script" not in html
    assert "default-src 'none'" in html


def test_no_personal_data_and_no_markup_of_the_rows(page):
    folder, html = page
    assert "corp-mail.com" not in html + (folder / "card.json").read_text()
    assert "<b>bold</b>" not in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html


def test_bars_are_within_their_column_and_nothing_has_no_bar():
    step = {"dropped": 0, "changed": 0, "facts": {}}
    steps = [{"name": "a", "kept": 10, "added": 0, **step}, {"name": "b", "kept": 40, "added": 30, **step}]
    html = card_html._steps(steps, 10)  # a step that adds ends with more rows than were read
    assert re.findall(r"width:([\d.]+)%", html) == ["25.00", "100.00"]
    assert 'data-name="kept">40</td>' in html
    assert "min-width:0" in card_html._bar(0, "after")
    assert "min-width:0" not in card_html._bar(0.001, "after")


def test_bins_are_named_by_what_falls_into_them():
    assert card_html._trimmed([0, 1, 10, 20, 50], [0, 2, 0, 1]) == [("1–9", 2), ("10–19", 0), ("20–49", 1)]
    assert card_html._trimmed([0, 0.25, 0.5], [1, 0], [1, 1]) == [("0 to 0.250", 1, 1), ("0.250 to 0.500", 0, 1)]
    assert card_html._trimmed([0, 1], [0]) == []

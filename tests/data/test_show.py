"""Showing explains every token as training takes it, cut and packed; in a terminal with and without colour, and as a page."""

import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from tunesmith.data.explain import explain, pieces
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.render import render
from tunesmith.data.show import View, pack, print_view, show, title, view, visible
from tunesmith.data.show_html import page
from tunesmith.errors import InputError

ASK = [{"role": "user", "content": "hi"}]


def answer(content):
    return [{"role": "assistant", "content": content}]


def printed(made, **options):
    out = io.StringIO()
    print_view(made, Console(file=out, width=200, **options))
    return out.getvalue()


def looked(records, tokenizer, max_length=None):
    shown = [p for record in records for p in pieces(record, tokenizer, max_length)]
    return View("m", max_length, shown, pack(shown), [])


def test_explained_by_turn(tokenizer):
    messages = [
        {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "no"), ("user", "b"), ("assistant", "yo"))
    ]
    record = Chat(messages, [False, False, False, True], Origin("d", 1))
    ((*tokens,),) = explain(record, tokenizer)
    assert [t.reason for t in tokens[:7]] == [
        *["template: context"] * 3,
        *["user turn: context"] * 2,
        *["template: context"] * 2,
    ]
    assert [(t.text, t.reason) for t in tokens[10:12]] == [
        ("n", "answer not trained (train: false)"),
        ("o", "answer not trained (train: false)"),
    ]
    assert [(t.text, t.scored, t.reason) for t in tokens if t.scored] == [
        ("y", True, "answer: scored"),
        ("o", True, "answer: scored"),
        ("<|im_end|>", True, "end of turn: scored"),
    ]
    assert [t.text for t in tokens if t.special] == ["<|im_start|>", "<|im_end|>"] * 4


def test_explained_text(tokenizer):
    ((*tokens,),) = explain(Text("ab", Origin("d", 1)), tokenizer)
    assert [t.scored for t in tokens] == [False, True, True]
    assert tokens[-1].text == "<eos>"


RECORDS = [
    Chat(ASK + answer("yo") + ASK + answer("no"), [False, True, False, True], Origin("d", 1)),
    Chat(ASK + answer("yo") + ASK + answer("no"), [False, False, False, True], Origin("d", 2)),
    Text("abcdefghijklmnopqrstuvwxyz", Origin("d", 3)),
    Preference(ASK, [answer("yo"), answer("so so"), answer("no")], Origin("d", 4)),
    Verdict(ASK, answer("yo"), True, Origin("d", 5)),
    Prompt(ASK, Origin("d", 6), "ja"),
    Chat([{"role": "user", "content": "x" * 40}, *answer("y")], [False, True], Origin("d", 7)),
]


@pytest.mark.parametrize("max_length", [None, 200, 24, 20, 13, 5])
def test_it_is_what_is_trained(tokenizer, max_length):
    """Ids and what is scored, kept and cut are render's, whatever the kind and the length."""
    shown = [p for record in RECORDS for p in pieces(record, tokenizer, max_length) if p.kept]
    examples, _ = render(RECORDS, tokenizer, max_length)
    assert [p.kept for p in shown] == examples.lengths.tolist()
    for i, piece in enumerate(shown):
        part = slice(examples.offsets[i], examples.offsets[i + 1])
        assert piece.ids[: piece.kept].tolist() == examples.ids[part].tolist()
        assert [t.scored for t in piece.tokens[: piece.kept]] == examples.scored[part].tolist()
        assert piece.origin == examples.origins[examples.record[i]]


def test_every_kind_is_shown_with_its_label(tokenizer):
    labels = [p.label for record in RECORDS for p in pieces(record, tokenizer)]
    assert labels == [
        "", "", "", "chosen", "answer 2 of 3", "rejected", "good answer", "prompt with its reference", "",
    ]  # fmt: skip
    ranked = Preference(ASK, [answer("yo"), answer("no")], Origin("d", 1), [0.5, -2.0])
    assert [p.label for p in pieces(ranked, tokenizer)] == ["chosen, score 0.5", "rejected, score -2"]
    (prompt,) = pieces(Prompt(ASK, Origin("d", 1)), tokenizer)
    assert (prompt.label, prompt.note) == ("prompt", "the model answers it itself")
    assert "".join(t.text for t in prompt.tokens).endswith("<|im_start|>a\n")
    (nothing,) = pieces(Chat(ASK + answer(""), [False, False], Origin("d", 1)), tokenizer)
    assert (nothing.kept, nothing.note) == (0, "left out: nothing to score")


def test_what_is_cut_and_what_is_left_out(tokenizer):
    long = Chat([*ASK, *answer("yoyoyo")], [False, True], Origin("d", 1))
    (piece,) = pieces(long, tokenizer, 14)
    assert (piece.kept, piece.note) == (14, "cut at max_length 14: 4 tokens lost, 3 of them scored")
    assert title(piece) == "d, row 1: 14 tokens, 4 scored"
    (piece,) = pieces(long, tokenizer, 9)
    assert (piece.kept, piece.note) == (0, "left out: its answer begins beyond max_length 9")
    assert title(piece) == "d, row 1: 18 tokens, left out"


def test_windows_of_a_text(tokenizer):
    first, second = pieces(Text("abcde", Origin("t", 1)), tokenizer, 4)
    assert (first.label, second.label) == ("window 1 of 2, cut at max_length 4", "window 2 of 2, cut at max_length 4")
    assert ["".join(t.text for t in p.tokens) for p in (first, second)] == ["abcd", "de<eos>"]
    assert second.tokens[0].reason == "context: the last token of the window before"


def test_without_colour_brackets_tell_scored_and_cut(tokenizer, monkeypatch):
    long = Chat([*ASK, *answer("yoyoyo")], [False, True], Origin("d", 1))
    text = printed(looked([long], tokenizer, 14))
    assert "<|im_start|>a⏎\n⟦yoyo⟧⟪yo<|im_end|>⏎\n⟫" in text
    assert "\x1b" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦yoyo⟧" in printed(looked([long], tokenizer, 14), force_terminal=True)
    monkeypatch.delenv("NO_COLOR")
    coloured = printed(looked([long], tokenizer, 14), force_terminal=True, color_system="standard")
    assert "⟦" not in coloured
    assert "\x1b[30;42my" in coloured  # black on green


def test_what_steers_a_terminal_is_written_out(tokenizer):
    assert visible("a\x1b[31m\u202eb\x07\r\u2066\n") == "a\\x1b[31m\\u202eb\\x07\\x0d\\u2066⏎\n"


def test_micro_batches_are_those_of_training(tokenizer):
    made = looked(RECORDS[3:5], tokenizer)
    assert sorted(i for batch in made.batches for i in batch.pieces) == [0, 1, 2, 3]
    (batch,) = pack(made.pieces, 4096)
    assert batch.tokens == sum(p.kept for p in made.pieces) - sum(batch.shared) + max(batch.shared)
    small = pack(made.pieces, 20)
    assert [len(b.pieces) for b in small] == [1, 1, 1, 1]
    assert all(b.tokens == made.pieces[b.pieces[0]].kept for b in small)
    text = printed(made)
    assert "micro-batch 1, " in text
    assert "row 4 chosen" in text
    left_out = pieces(Chat(ASK + answer(""), [False, False], Origin("d", 1)), tokenizer)
    assert pack(left_out) == []


def test_rows_from_where_it_is_asked(write, tokenizer, stand_in):
    stand_in(tokenizer)
    path = write("a.jsonl", [{"prompt": "hi", "completion": c} for c in "abc"])
    made = view(path, "m", 2, row=2)
    assert [p.origin.row for p in made.pieces] == [2, 3]
    assert made.max_length == 8192
    with pytest.raises(InputError, match="--row 4 is beyond the last: there are 3 rows"):
        view(path, "m", 2, row=4)
    out = io.StringIO()
    show(path, "m", 1, Console(file=out, width=200))
    assert "13 tokens, 2 scored" in out.getvalue()
    assert "end of turn: scored" in out.getvalue()
    assert "row 2" not in out.getvalue()


def test_the_rows_after_those_shown_are_not_read(write, tokenizer, stand_in):
    """A file larger than memory shows at once; what is wrong further on is for `data inspect`."""
    stand_in(tokenizer)
    path = write("a.jsonl", [{"prompt": "hi", "completion": c} for c in "abcdefghijklmnopqrstuvwxyz"])
    with open(path, "a") as f:
        f.write("{broken\n")
    assert [p.origin.row for p in view(path, "m", 2, row=20).pieces] == [20, 21]
    with pytest.raises(InputError, match="row 27"):
        view(path, "m", 9, row=20)


def test_a_folder_with_a_tokenizer_alone_is_enough(write, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "alone")
    (piece,) = view(write("a.jsonl", [{"prompt": "hi", "completion": "a"}]), str(tmp_path / "alone"), 1).pieces
    assert "".join(t.text for t in piece.tokens if t.scored) == "a<|im_end|>"


class Read(HTMLParser):
    """What a page says: its tags, the classes of its spans with their texts, its attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.spans, self.text, self.within = set(), [], "", []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.within.append((tag, dict(attributes)))
        if tag == "span":
            self.spans.append([dict(attributes).get("class"), ""])

    def handle_endtag(self, tag):
        while self.within and self.within.pop()[0] != tag:
            pass

    def handle_data(self, data):
        self.text += data
        if self.within and self.within[-1][0] == "span":
            self.spans[-1][1] += data


def test_the_page_says_the_same_and_escapes_everything(make_tokenizer):
    tokenizer = make_tokenizer(known="abcdefghijklmnopqrstuvwxyz \n<>/()\"'&=\u202e")
    evil = "<script>alert(\"x\")</script> & <img src=x onerror='y'>"
    record = Chat([{"role": "user", "content": evil}, *answer('yo " <b>')], [False, True], Origin('<i>"d', 1))
    made = looked([record, Text("</title><style>", Origin("t", 1))], tokenizer, 120)
    text = page(made)
    read = Read()
    read.feed(text)
    assert read.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        "b",
        "div",
        "span",
    }
    assert "script" not in read.tags
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched
    shown = [t for p in made.pieces for t in p.tokens]
    tokens = [span for span in read.spans if span[0]]
    assert [t for _, t in tokens] == [visible(t.text) for t in shown]
    assert "".join(t for how, t in tokens if how in ("scored", "end")) == "".join(
        visible(t.text) for t in shown if t.scored
    )
    assert '<i>"d, row 1' in read.text
    for word in ("underlined", "double underline", "struck through", "prefers-color-scheme: dark", "Micro-batch 1"):
        assert word in text


def test_the_command_writes_a_page(tunesmith_cli, tiny_folder, rows_file, tmp_path):
    out = tmp_path / "rows.html"
    code, said, err = tunesmith_cli(
        "data", "show", rows_file, "--model", tiny_folder, "-n", 2, "--row", 3, "--max-length", 60, "--html", out
    )
    assert (code, err) == (0, "")
    assert said == f"{out}: 2 rows written\n"
    text = out.read_text()
    assert "row 3" in text
    assert "row 4" in text
    assert "row 5" not in text
    first = json.loads(rows_file.read_text().splitlines()[2])
    read = Read()
    read.feed(text)
    assert first["output"] in "".join(t for how, t in read.spans if how == "scored")


def test_a_page_that_cannot_be_written_is_one_sentence(refused, tiny_folder, rows_file, tmp_path):
    line = refused("data", "show", rows_file, "--model", tiny_folder, "--html", tmp_path / "no" / "rows.html")
    assert "cannot be written (No such file or directory); give another file for --html." in line


def test_tokens_inside_a_character(shared):
    """A flag is eight bytes and two characters: the first token of each shows it, the others that they belong to it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    ((*tokens,),) = explain(Text("a 🇨🇭", Origin("t", 1)), tokenizer)
    texts = [t.text for t in tokens]
    assert "".join(texts).replace("▫", "") == "a 🇨🇭" + tokenizer.eos_token
    assert "▫" in texts
    assert len(texts) == len(np.atleast_1d(tokenizer("a 🇨🇭").input_ids)) + 1

"""Variations of prompts: what may change, what stays, and where a row says it comes from."""

import numpy as np
import pytest

from tunesmith.data.augment import _words, case, format, instruction, noise, synonyms
from tunesmith.data.records import Chat, Origin, Preference, Text
from tunesmith.data.rows import Rows
from tunesmith.data.steps import augment
from tunesmith.errors import InputError

PROMPT = 'Describe a large house near "the big sea" and explain why `fast = 3` is important to Kate.'


def rng(*seed):
    return np.random.default_rng(seed or 0)


def chat(asked, answered, row=1):
    return Chat(
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}],
        [False, True],
        Origin("a", row),
    )


def test_pieces_join_to_the_text():
    for text in (PROMPT, "", "  a\n\n b’c 12.5 日本 \t x@y.org"):
        assert "".join(_words.pieces(text)) == text


def test_what_may_be_touched():
    cut = _words.pieces(PROMPT)
    touched = {cut[i] for i in _words.open_places(PROMPT, cut, {"important"})}
    assert {"Describe", "large", "house", "explain"} <= touched
    assert not touched & {
        "big",
        "sea",
        "fast",
        "Kate",
        "important",
    }  # quoted, quoted, code, a name, taken up by the answer


def test_synonyms_replace_words_of_one_sense_only(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("easy, simple\ntask, assignment\nbig, large\nchild, kid\n")
    made = {synonyms.vary("An easy task for a big child.", rng(i), rate=1.0, lexicon=str(file)) for i in range(20)}
    assert made == {"An easy assignment for a large kid."}  # "simple" would need another article
    assert synonyms.vary("CHILD child", rng(), rate=1.0) == "KID kid"
    assert synonyms.vary("Nothing here", rng()) == "Nothing here"


def test_compounds_stay_whole():
    text = "Re-write the file.txt and/or e-mail of the text-based game."
    cut = _words.pieces(text)
    assert {cut[i] for i in _words.open_places(text, cut, ())} == {"the", "of", "game"}


def test_a_lexicon_of_the_users(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("blau, azurn  # zwei\n", encoding="utf-8")
    assert synonyms.vary("Das blau", rng(), lexicon=str(file)) == "Das azurn"
    file.with_name("bad.txt").write_text("rot\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"bad.txt, line 1: \"rot\" stands alone"):
        synonyms.vary("rot", rng(), lexicon=str(tmp_path / "bad.txt"))
    with pytest.raises(InputError, match="there is no file"):
        synonyms.vary("rot", rng(), lexicon=str(tmp_path / "none.txt"))


def test_every_group_of_the_list_is_symmetric_and_has_two_words():
    groups = synonyms.groups()
    assert len(groups) > 100
    for word, group in groups.items():
        assert word in group
        assert len(group) > 1


@pytest.mark.parametrize("kind", noise.KINDS)
def test_each_noise_alone(kind):
    text = "please write something about rivers today"
    only = {other: other == kind for other in noise.KINDS}
    said = noise.vary(text, rng(3), rate=0.01, **only)
    before, after = text.split(), said.split()
    if kind == "drop":
        assert len(after) == len(before) - 1
    elif kind == "double":
        assert len(after) == len(before) + 1
    elif kind == "swap":
        assert sorted(after) == sorted(before)
        assert sum(a != b for a, b in zip(after, before, strict=True)) == 2
    else:
        assert sum(a != b for a, b in zip(after, before, strict=True)) == 1
        assert [w[0] for w in after] == [w[0] for w in before]


def test_a_slip_makes_no_vowel_of_another():
    made = {noise.mistyped("list", rng(i)) for i in range(300)}
    assert {"liist", "lsit"} <= made
    assert not {"lust", "lost"} & made


def test_noise_leaves_code_quotations_and_kept_words():
    for i in range(200):
        said = noise.vary(PROMPT, rng(i), {"house"}, rate=1.0)
        assert all(part in said for part in ('"the big sea"', "`fast = 3`", "Kate", "house"))


def test_instruction_frames():
    made = {instruction.vary("Describe a cat.", rng(i)) for i in range(200)}
    assert "Could you please describe a cat?" in made
    assert "Please describe a cat." in made
    assert len(made) == len(instruction.POLITE) + len(instruction.FRAMES) + len(instruction.WISHES) + 1
    for i in range(200):  # a question is no imperative: no frame goes on into it
        assert "What is a cat?" in instruction.vary("What is a cat?", rng(i))
        assert "Task:" not in instruction.vary("What is a cat", rng(i))
        said = instruction.vary("Sort these by size.\n\nA cat, a cow", rng(i))
        assert "Thank" not in said  # it would be one of the things to sort
        assert said.endswith("\n\nA cat, a cow")
        assert said.startswith(("Can", "Could", "Would")) == ("size?\n" in said)
        assert not instruction.vary("Research shows that cats sleep.", rng(i)).startswith(instruction._ASKS)
    assert instruction.vary("X", rng(), templates=["[{}]"]) == "[X]"
    with pytest.raises(InputError, match=r'"none" needs exactly one \{\}'):
        instruction.vary("X", rng(), templates=["none"])


def test_case_and_its_styles():
    assert case.vary("Tell Anna a Story, now.", rng(), styles=["lower"]) == "tell Anna a Story, now."  # inside: names
    assert case.vary("tell it `As Is`.", rng(), styles=["upper"]) == "TELL IT `As Is`."
    assert case.vary("why so?", rng(), styles=["no_end_mark"]) == "why so"
    assert (
        case.vary("red, blue, 3.5 and so on.", rng(), styles=["no_punctuation"]) == "red, blue, 3.5 and so on"
    )  # a list
    assert case.vary("given this, go on.", rng(), styles=["no_punctuation"]) == "given this go on"
    assert case.vary("use the CPU now", rng(), styles=["title"]) == "Use The CPU Now"
    assert case.vary("Write it in capital letters.", rng(), styles=["lower"]) == "Write it in capital letters."


def test_format_changes_no_word():
    for text in ("Sort these: pear, apple", "Do this.\n\nwith that", "Take\n- a\n- b", "One line.\nAnother."):
        for i in range(10):
            said = format.vary(text, rng(i))
            assert said != text
            assert _words.words(said) - {"input"} == _words.words(text)
    code = "Fix:\n```\na\nb\n```"
    assert format.vary(code, rng()) == code


def test_the_step_adds_varied_rows_with_their_source():
    records = [
        chat(f"Describe a big {w} in detail.", f"The {w} is big.", i + 1) for i, w in enumerate(["cat", "dog", "cow"])
    ]
    rows = Rows([*records, Text("plain", Origin("a", 4))])
    facts = augment.apply(rows, methods=["instruction", {"name": "noise", "rate": 0.3}], share=1.0, copies=2, seed=3)
    made = [(i, r) for i, r in rows if i > 3]
    assert sum(facts["numbers"].values()) == len(made) > 3
    for _, record in made:
        source = records[record.origin.row - 1]
        assert record.messages[1] == source.messages[1]  # the answer stays
        assert record.messages[0]["content"] != source.messages[0]["content"]
        assert "big" in record.messages[0]["content"]  # the answer takes it up
        assert record.extra["provenance"]["from"] == str(source.origin)
    again = Rows([*records, Text("plain", Origin("a", 4))])
    augment.apply(again, methods=["instruction", {"name": "noise", "rate": 0.3}], share=1.0, copies=2, seed=3)
    assert list(again) == list(rows)


def test_a_preference_keeps_its_answers_and_material_below_a_blank_line_stays():
    answers = [[{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]]
    record = Preference([{"role": "user", "content": "Verify the car.\n\nA car text."}], answers, Origin("a", 1))
    varied = augment.varied(record, synonyms.vary, False, rng(1))
    assert varied.answers == answers
    assert varied.prompt[0]["content"].endswith("\n\nA car text.")


def test_material_after_a_colon_and_parts_with_images_stay():
    record = chat("Correct the sentence: The car was usually there", "Fine.")
    assert augment.varied(record, synonyms.vary, False, rng(1)) is None
    parts = chat([{"type": "text", "text": "Describe the car"}], "Fine.")
    assert augment.varied(parts, noise.vary, False, rng(1)) is None


def test_format_keeps_numbers_and_joins_sentences_only():
    assert format.one_line("Name the place\nRome") == "Name the place\nRome"
    assert format.one_line("Name it.\n\nIt is old.") == "Name it. It is old."
    assert format.bulleted("Which?\n1. a\n2. b") == "Which?\n1) a\n2) b"
    assert format.labelled("Do it.\n\nInput: x") == "Do it.\n\nInput: x"
    assert format.labelled("Do it.\n\n<no input>") == "Do it.\n\n<no input>"


def test_what_is_wrong_is_said_before_a_row_is_read():
    with pytest.raises(InputError, match=r'no augment "synonym"\. Did you mean "synonyms"'):
        augment.check(methods=["synonym"])
    with pytest.raises(InputError, match='unknown key "rat"'):
        augment.check(methods=[{"name": "noise", "rat": 1}])
    with pytest.raises(InputError, match="there is no file"):
        augment.check(methods=[{"name": "synonyms", "lexicon": "missing.txt"}])

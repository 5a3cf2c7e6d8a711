"""Loops, breaking off, placeholders, refusals and special tokens; and their look-alikes."""

import random

import pytest

from tunesmith.data.checks import answers


def row(output, instruction="Tell me of it."):
    return {"instruction": instruction, "output": output}


def talk(system, *said):
    turns = [{"role": ("user", "assistant")[i % 2], "content": one} for i, one in enumerate(said)]
    return {"messages": [{"role": "system", "content": system}, *turns]}


@pytest.mark.parametrize("period", [4, 11, 60, 250])
@pytest.mark.parametrize("before", [0, 100])
def test_a_loop_of_any_length_is_found(period, before):
    letters = random.Random(period)
    phrase = "".join(letters.choice("abcdefgh ") for _ in range(period))
    start = "".join(letters.choice("ijklmnop ") for _ in range(before))
    times = max(5, 200 // period)
    found = answers.loop(start + phrase * times)
    assert found is not None
    assert len(found) <= period
    assert found in phrase * 3


@pytest.mark.parametrize(
    "text",
    [
        "-" * 500,
        "| a | b |\n|---|---|\n" * 1 + "| 1 | 2 |\n" * 40,
        "ha " * 20,
        "The same words come again, the same words come again, but then the text goes on in a way of its own. " * 2
        + "And so it ends here." * 1,
        " ".join(str(i) for i in range(200)),
    ],
)
def test_no_loop(text):
    assert answers.loop(text) is None


def test_two_letters_are_a_loop_where_they_fill_a_page():
    assert answers.loop("So: " + "na" * 250) is not None
    assert answers.loop("So: " + "na" * 100) is None


def test_a_phrase_said_fewer_than_five_times_is_no_loop():
    phrase = "Row, row, row your boat gently down the stream. "
    assert answers.loop(phrase * 4) is None
    assert answers.loop(phrase * 5) is not None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("It stands there as a reminder of the importance of", 'breaks off after "of"'),
        ("It stands there as a reminder of its importance,", "ends with a comma"),
        ("It stands there as a reminder of its importance.", None),
        ("These are the people that I always travel with", None),
        ("Looking forward,", None),
        ("- a first thing\n- a second thing, and the", None),
        ("The table:\n| of a certain length | and the | of the", None),
    ],
)
def test_breaking_off(answer, said):
    found = answers.breaks_off(answer)
    assert (found is None) if said is None else said in found


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (row("Dear {{name}}, hello."), "placeholder"),
        (row("Dear {{ first_name }}, hello."), "placeholder"),
        (row("<noinput>"), "placeholder"),
        (row("NaN"), "placeholder"),
        (row("n/a"), "placeholder"),
        (row("..."), "placeholder"),
        (row("As an AI, I can't tell."), "refusal"),
        (row("I’m not able to answer this."), "refusal"),
        (row(" tell me of the old mill there.\n", "Tell me of the old mill there."), "answer_is_prompt"),
        (talk("Be kind.", "Tell me of the old mill there.", "Tell me of the old mill there."), "answer_is_prompt"),
        (row("It is done.\nTODO: the second half."), "placeholder"),
        (row("Lorem ipsum dolor sit amet."), "placeholder"),
        (row("The capital is [insert city]."), "placeholder"),
        (row("As an AI language model, I cannot."), "refusal"),
        (row("I’m glad. I'm sorry, but I can't do it."), "refusal"),
        (row("I cannot assist with that."), "refusal"),
        (row("It is so.<|im_end|>"), "special_token"),
        (row("It is so. </s>"), "special_token"),
        (row("It is so.", "[INST] Tell me [/INST]"), "special_token"),
        (row("It is so.<｜end▁of▁sentence｜>"), "special_token"),
        (row("It is so.\n\n### Instruction:\nTell more."), "next_turn"),
        (row("```python\nx = 1"), "code_fence"),
        (row("Tell me of the old mill.", "Tell me of the old mill."), "answer_is_prompt"),
    ],
)
def test_each_kind(kinds, given, kind):
    assert kinds(answers.check, given) == [(1, kind)]


@pytest.mark.parametrize(
    "given",
    [
        row("Use {{ name }} in the template:\n```\n{{ name }}\n```"),
        row("$x^{{2}}$ and \\frac{{a}}{{b}}"),
        row("Hello {{name}}!", "Greet {{name}}."),
        row("Dear [insert name], you are welcome.", "Write a letter of invitation."),
        row("null and void"),
        row("!!!", "Which sign shows surprise? Give three of them."),
        talk("Be kind.", "yes please, do go on", "Good.", "Good."),
        row("An AI language model predicts the next word.", "What is a language model?"),
        row("I am sorry for your loss."),
        row("if a <b> c </b> then d"),
        row("```python\nx = 1\n```\nand `y`"),
        row("User: hi\nBot: hello\nUser: bye", "Write a dialogue between a user and a bot."),
        row("yes", "yes"),
        {"text": "I'm sorry, but I can't go on, he said and went into the"},
    ],
)
def test_look_alikes(kinds, given):
    assert kinds(answers.check, given) == []

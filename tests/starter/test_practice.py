"""Practice: talk about the world without any mark of a chat, and without a held-out item."""

from tunesmith.starter import practice, tasks
from tunesmith.starter.tokenizer import MARKS, SPECIAL


def test_no_mark_of_the_chat_form_and_no_tool_call():
    texts = list(practice.documents(0, 2000))
    assert not [t for t in texts for mark in (*SPECIAL, *MARKS, "<tool_call>") if mark in t]


def test_no_held_out_question_is_practised():
    """The held-out rows' questions do not occur in the text, for what is drawn for practice leaves their items out."""
    text = "\n".join(practice.documents(0, 4000))
    asked = [r["messages"][0]["content"] for r in tasks.rows(0, 200, held=True)]
    assert not [question for question in asked if question in text]


def test_the_same_seed_gives_the_same_text_and_a_longer_run_begins_like_it():
    assert list(practice.documents(3, 50)) == list(practice.documents(3, 90))[:50]
    assert list(practice.documents(3, 5)) != list(practice.documents(4, 5))

"""Each way of making rows with a model that a test plays: what is asked, what is made, what is refused."""

import json

import pytest

from tunesmith.data.records import Chat, Origin, Preference, Text
from tunesmith.data.synthesis import (
    _rounds,
    back_translation,
    constitutional,
    document_qa,
    evol_instruct,
    paraphrase,
    self_instruct,
)
from tunesmith.data.synthesis._check import grounded, looped, unfaithful, unusable, words
from tunesmith.data.synthesis._novel import Known, rouge_l
from tunesmith.data.synthesis._reply import json_in, listed, spoken, unframed
from tunesmith.data.synthesis._reply import pairs as pairs_of
from tunesmith.data.synthesis._rounds import CUT_OFF, NoAnswer, Sampling, Seed, drive
from tunesmith.errors import InputError

SAMPLING = Sampling(max_tokens=32, temperature=0.5, seed=1)


def chat(asked, answered="Fine.", row=1):
    return Chat(
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}],
        [False, True],
        Origin("a", row),
    )


def seeds(*asked):
    return [Seed(i, chat(text, row=i + 1)) for i, text in enumerate(asked)]


def model(say):
    """A model that answers each request's last message by `say`; `model.asked` are the requests it had."""

    def answer(requests):
        answer.asked += requests
        return [say(r.messages[-1][1]) for r in requests]

    answer.asked = []
    return answer


def asked_of(made):
    return [m.record.messages[0]["content"] for m in made]


def test_rouge_l_by_hand():
    # LCS of "the cat sat on a mat" and "the dog sat on the mat": the sat on mat = 4; 2 * 4 / 12
    assert rouge_l(words("the cat sat on a mat"), words("the dog sat on the mat")) == pytest.approx(8 / 12)
    assert rouge_l([], []) == 1.0
    known = Known(0.6)
    known.add("the dog sat on the mat")
    known.add("something else")
    assert known.nearest("the cat sat on a mat") == (0, pytest.approx(8 / 12))
    assert known.nearest("nothing of that kind") is None


def test_checks_by_hand():
    assert unusable("") == unusable("...") == "an empty answer"
    assert unusable("I'm sorry, but I can't help with that.") == "a refusal"
    assert unusable("Here is the #Rewritten Prompt#: do it") == "words of the question in the answer"
    assert unusable("one two", least=3) == "an answer that is too short"
    assert unusable("tell me a story " * 10) == "an answer that repeats itself"
    assert not looped([str(i) for i in range(100)])
    assert unusable("A sound answer.") is None
    assert unfaithful("Add 3 and 4", "Sum 3 and 4") is None
    assert unfaithful("Add 3 and 5", "Sum 3 and 4") == "a rewording with other numbers"
    assert unfaithful("sum 3 and 4!", "Sum 3 and 4") == "a rewording that changes nothing"
    assert unfaithful("x", "one two three four") == "a rewording of another length"
    assert unframed('Sure, here is the text: "Go home."') == "Go home."
    assert unframed('"Go home."') == "Go home."
    assert unframed("Here are two: a and b") == "a and b"
    assert unframed("A plain line: with a colon") == "A plain line: with a colon"
    assert grounded("The red house is old", "An old house, red") == 1.0
    assert grounded("A blue house", "An old house") == 0.5


def test_together_runs_chains_side_by_side_and_keeps_their_order(monkeypatch):
    monkeypatch.setattr(_rounds, "AT_ONCE", 3)
    sizes = []

    def chain(i):
        said = ""
        for n in range(i % 3):
            said = yield SAMPLING.request(_rounds.ask(f"{i}.{n}"), i, n)
        return _rounds.Made(chat(said), (i,)) if said else _rounds.Refused("none asked")

    def answer(requests):
        sizes.append(len(requests))
        return [r.messages[0][1] for r in requests]

    made, refused = drive(_rounds.together(chain(i) for i in range(7)), answer)
    assert asked_of(made) == ["1.0", "2.1", "4.0", "5.1"]
    assert refused == {"none asked": 3}
    assert sizes == [2, 1, 2, 1]  # rounds of the groups (0, 1, 2), (3, 4, 5), (6)


def test_every_request_has_a_seed_of_its_own():
    found = {SAMPLING.request((), row, n).seed for row in range(50) for n in range(10)}
    assert len(found) == 500


def test_paraphrase_of_prompt_and_answer():
    m = model(lambda q: "Sure, here it is: Kindly add 3 and 4" if "Sum 3" in q else "nothing at all")
    made, refused = drive(paraphrase.make(seeds("Sum 3 and 4", "Sum 9"), SAMPLING), m)
    assert asked_of(made) == ["Kindly add 3 and 4"]
    assert made[0].record.messages[1]["content"] == "Fine."
    assert made[0].of == (0,)
    assert refused == {"a rewording with other numbers": 1}
    made, _ = drive(paraphrase.make(seeds("Q"), SAMPLING, what="answer"), model(lambda q: "All good."))
    assert [m["content"] for m in made[0].record.messages] == ["Q", "All good."]


def test_back_translation_goes_there_and_back():
    said = {
        "Translate the text below into German": "Sag etwas über Flüsse",
        "Translate the text below into English": "Tell about rivers",
    }
    m = model(lambda q: next(v for k, v in said.items() if q.startswith(k)))
    made, _ = drive(back_translation.make(seeds("Say something of rivers"), SAMPLING), m)
    assert asked_of(made) == ["Tell about rivers"]
    assert made[0].facts == {"changed": "prompt", "through": "German"}
    assert "Sag etwas über Flüsse" in m.asked[1].messages[0][1]


def test_evol_instruct_goes_on_from_what_it_evolved_and_stops_at_a_failure():
    def say(q):
        if "<instruction>" in q:
            text = q.split("<instruction>\n")[1].split("\n</instruction>")[0]
            return text if "stuck" in text else text + " Give three clear reasons for it."
        return "An answer."

    made, refused = drive(
        evol_instruct.make(seeds("Name a colour", "I am stuck"), SAMPLING, rounds=2, breadth=0.0), model(say)
    )
    assert asked_of(made) == ["Name a colour" + " Give three clear reasons for it." * n for n in (1, 2)]
    assert [m.facts["round"] for m in made] == [1, 2]
    assert refused == {"an instruction that did not change": 1}
    with pytest.raises(InputError, match=r'no operation "deeper".*Did you mean "deepen"'):
        evol_instruct.check(operations=["deeper"])


def test_self_instruct_takes_new_instructions_only_and_answers_each():
    batches = iter([
        "1. Name three rivers of Europe\n2. Name three rivers in Europe\n3) Draw a picture of it\n4. Write a short poem on rain",
        "1. Explain how bread is made\n2. List the parts of a bicycle wheel",
    ])  # fmt: skip
    m = model(lambda q: next(batches) if "instructions for an assistant" in q else f"Answer to: {q}")
    made, refused = drive(self_instruct.make(seeds("Name a colour", "Count to ten"), SAMPLING, count=4), m)
    assert asked_of(made) == [
        "Name three rivers of Europe", "Write a short poem on rain", "Explain how bread is made", "List the parts of a bicycle wheel",
    ]  # fmt: skip
    assert made[0].record.messages[1]["content"] == "Answer to: Name three rivers of Europe"
    assert set(made[0].of) == {0, 1}
    assert refused == {"an instruction like a known one": 1, "an instruction about what is no text": 1}


def test_self_instruct_ends_when_nothing_new_comes():
    m = model(lambda q: "1. Name a colour")
    made, _ = drive(self_instruct.make(seeds("Name a colour"), SAMPLING, count=50), m)
    assert made == []
    assert len(m.asked) == 3 * 7  # three dry rounds of ceil(50 / 8) requests


def test_document_qa_keeps_what_the_passage_says():
    text = "The old mill stands by the river Aa. It was built in 1820 by two brothers."
    pairs = [
        {"question": "Where does the old mill stand?", "answer": "By the river Aa."},
        {"question": "Where does the old mill stand now?", "answer": "By the river."},
        {"question": "Who owns the mill today?", "answer": "A famous painter called Winter."},
    ]
    m = model(lambda q: "Here you are:\n" + json.dumps(pairs))
    document = [Seed(0, Text(text, Origin("a", 1)))]
    made, _ = drive(document_qa.make(document, SAMPLING), m)
    assert asked_of(made) == ["Where does the old mill stand?"]
    made, _ = drive(document_qa.make(document, SAMPLING, with_passage=True), m)
    assert asked_of(made) == [text + "\n\nWhere does the old mill stand?"]
    assert pairs_of("Q: What?\nA: That.\n\nQ2: Who?\nA2: She.") == [("What?", "That."), ("Who?", "She.")]
    assert pairs_of("no idea") is None


def test_passages_lose_nothing_and_stay_short():
    text = "One. " * 30 + "\n\n" + "word " * 100 + "x" * 450 + "\n\nEnd."
    parts = list(document_qa.passages(text, 200))
    assert max(map(len, parts)) <= 200
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_constitutional_revises_by_principles():
    def say(q):
        if "critique of the answer" in q:
            return "Please come in."
        return "It is rude." if "an answer to it" in q else "Come in, you."

    m = model(say)
    laws = ["Be kind."]
    made, _ = drive(constitutional.make(seeds("Greet me"), SAMPLING, principles=laws), m)
    assert [t["content"] for t in made[0].record.messages] == ["Greet me", "Please come in."]
    assert made[0].facts == {"principles": laws}
    assert "Be kind." in m.asked[1].messages[0][1]
    assert "It is rude." in m.asked[2].messages[0][1]
    made, _ = drive(constitutional.make(seeds("Greet me"), SAMPLING, kind="preference", own_answer=False), model(say))
    record = made[0].record
    assert isinstance(record, Preference)
    assert (record.chosen[0]["content"], record.rejected[0]["content"]) == ("Please come in.", "Fine.")


def test_what_reasoning_models_think_is_no_answer():
    assert spoken("<think>2 + 2?\n</think>\n\nFour.").strip() == "Four."
    assert spoken("2 + 2? Yes.\n</think>Four.") == "Four."  # the template opened it
    assert str(spoken("<think>and so on")) == "an answer cut off while thinking"
    assert spoken("[THINK]hm[/THINK]Four.") == "Four."
    assert spoken("Use <b>bold</b> there.") == "Use <b>bold</b> there."


@pytest.mark.parametrize(
    "reply",
    [
        "Name a river.", '"Name a river."', "“Name a river.”", "Sure! Here is the reworded text:\n\nName a river.",
        "Certainly, here's a new version: Name a river.", "**New Instruction:** Name a river.", "<text>\nName a river.\n</text>",
        "```text\nName a river.\n```", "Natürlich, hier ist der Text:\nName a river.", "当然，以下是改写：\nName a river.",
        "Voici une version :\nName a river.", "Name a river.\n\nLet me know if you need anything else!", "Reworded text: Name a river.",
        "#Rewritten Prompt#: Name a river.", "Okay.\n\nName a river.",
    ],
)  # fmt: skip
def test_replies_lose_their_wrapping(reply):
    assert unframed(reply) == "Name a river."


def test_what_the_text_itself_begins_with_stays():
    assert unframed("Question: why so?", "Question: how come?") == "Question: why so?"
    assert unframed('"Go" and "stay"') == '"Go" and "stay"'
    assert unframed("Here is a man. Describe him: old or young?") == "Here is a man. Describe him: old or young?"
    assert unframed("Translate: one, two") == "Translate: one, two"


def test_refusals_of_all_kinds_and_none():
    for text in (
        "I’m sorry, but I can’t help with that.", "I cannot assist with this request.", "As an AI model, no.",
        "I am unable to provide that.", "Unfortunately, I can't do that.", "Es tut mir leid, aber ich kann das nicht.",
        "抱歉，我不能这样做。",
        "I won't help with that.",
    ):  # fmt: skip
        assert unusable(text) == "a refusal", text
    for text in (
        "I'm sorry to hear that you are ill. I hope you get well soon.", "I am sorry for the delay, Kim.", "AI is a field of study.",
        "The cat said: I can't help it, I am hungry.", "Use the new prompt at once. The <text> element draws words.",
    ):  # fmt: skip
        assert unusable(text) is None, text


def test_lists_as_models_write_them():
    reply = "Here are 3:\n\n1. **Cooking**: Explain how bread rises.\n2. **Name three rivers.**\n3) Instruction: Sort words."
    assert listed(reply) == ["Explain how bread rises.", "Name three rivers.", "Sort words."]
    assert listed('```json\n["Name a river", {"instruction": "Sort words"}]\n```') == ["Name a river", "Sort words"]
    assert listed("- Name a river\n* Sort words") == ["Name a river", "Sort words"]
    assert listed("1. Sum up this text:\n   The sea is wide.\n2. “Go on”\n\nI hope this helps!") == [
        "Sum up this text:\nThe sea is wide.", "Go on",
    ]  # fmt: skip
    assert listed("no list at all") == []
    assert self_instruct.unfit("Sum up this text:") == "an instruction without what it speaks of"


def test_json_and_question_lines_as_models_write_them():
    assert pairs_of("See [1].\n```json\n[{“question”: “Who?”, “answer”: “She.”},]\n```") == [("Who?", "She.")]
    assert pairs_of('{"questions": [{"Question": "Who?", "Answer": "She."}, {"question": "Where?"}]}') == [
        ("Who?", "She.")
    ]
    assert pairs_of("**Q1:** Who?\n**A1:** She.\nAnd he.\n\n**Q2:** When?\n**A2:** Now.") == [
        ("Who?", "She.\nAnd he."), ("When?", "Now."),
    ]  # fmt: skip
    assert list(json_in("[[[[" * 5000)) == []


def test_an_answer_that_is_none_ends_its_chain_and_no_other():
    def answer(requests):
        return [NoAnswer(CUT_OFF) if "rain" in r.messages[0][1] else "Kindly do it" for r in requests]

    made, refused = drive(paraphrase.make(seeds("Do the rain", "Do the snow"), SAMPLING), answer)
    assert asked_of(made) == ["Kindly do it"]
    assert refused == {CUT_OFF: 1}
    turns = iter([["Name a wide river and say why it is wide"], ["The Nile."], [NoAnswer(CUT_OFF)]])
    made, _ = drive(evol_instruct.make(seeds("Name a river"), SAMPLING, rounds=2, breadth=0.0), lambda _: next(turns))
    assert len(made) == 1  # the first evolution stays


def test_questions_that_point_to_a_passage_nobody_sees_are_left_out():
    text = "The old mill stands by the river Aa."
    reply = json.dumps(
        [{"question": "What does the passage say of the mill?", "answer": "The old mill stands by the river."}]
    )
    _, refused = drive(document_qa.make([Seed(0, Text(text, Origin("a", 1)))], SAMPLING), model(lambda q: reply))
    assert refused == {"a question that points to the passage": 1}

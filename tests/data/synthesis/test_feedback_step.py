"""AI feedback as a step: lineage, a judge of its own, costs, resume, secrets, log-probabilities, and the starter as both models."""

import json
import math
import re

import pytest

from tunesmith.data.kinds import to_row
from tunesmith.data.records import Chat, Origin, Preference
from tunesmith.data.rows import Rows
from tunesmith.data.steps import synthesize
from tunesmith.errors import InputError

SHOWN = re.compile(r"<answer_A \w+>\n(.*?)\n</answer_A.*<answer_B \w+>\n(.*?)\n</answer_B", re.DOTALL)


def records(n=4):
    return [
        Chat(
            [{"role": "user", "content": f"Tell me of {word}."}, {"role": "assistant", "content": "No."}],
            [False, True],
            Origin("a", i + 1),
        )
        for i, word in enumerate(["rain", "snow", "wind", "fire"][:n])
    ]


def reply(body):
    """What both models say: the writer by its request's seed, the judge the longer answer."""
    asked = body["messages"][-1]["content"]
    shown = SHOWN.search(asked)
    if shown is None:
        return "It is nice" + "!" * (body["seed"] % 97)
    a, b = shown.groups()
    return "A" if len(a) > len(b) else "B"


@pytest.fixture
def options(server, tmp_path):
    server.reply = reply
    return {"method": "ai_feedback", "model": "m", "endpoint": server.url, "journal": str(tmp_path / "j.jsonl")}


def made_of(rows, before):
    return [record for i, record in rows if i >= before]


def test_rows_say_who_judged_and_how(server, options, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "canary-0123")
    rows = Rows(records())
    judge = {"model": "wise", "endpoint": server.url, "key_env": "JUDGE_KEY"}
    method = {"name": "ai_feedback", "principles": ["Be long."]}
    facts = synthesize.apply(rows, **{**options, "method": method, "judge": judge})
    made = made_of(rows, 4)
    assert all(isinstance(record, Preference) for record in made)
    assert len(made) == 4
    assert len(rows) == 8  # the chats stay: a prepared set has a folder for each kind
    for record in made:
        assert len(record.chosen[0]["content"]) > len(record.rejected[0]["content"])
        told = record.extra["provenance"]
        assert {k: told[k] for k in ("method", "model", "judge", "principle")} == {
            "method": "ai_feedback", "model": f"m at {server.url}", "judge": f"wise at {server.url}", "principle": "Be long.",
        }  # fmt: skip
        assert {told["verdicts"][0]["first"], told["verdicts"][0]["swapped"]} == {"A", "B"}
    assert {body["model"] for body in server.bodies} == {"m", "wise"}
    with_key = [
        body["model"] for body, sent in zip(server.bodies, server.headers_seen, strict=True) if "Authorization" in sent
    ]
    assert set(with_key) == {"wise"}
    assert len(with_key) == 8
    assert facts["numbers"]["pairs in which both orders agree"] == 1.0
    assert facts["numbers"]["preference for the answer shown first"] == 0.5
    assert facts["tables"][0]["rows"][0] == ["the same answer in both orders", 4]
    assert "canary" not in json.dumps([facts, [to_row(r) for r in made], server.bodies])


def test_the_two_models_have_journals_of_their_own(options, tmp_path, server):
    synthesize.apply(Rows(records()), **options, judge={"model": "wise", "endpoint": server.url})
    assert {f.name for f in tmp_path.glob("j*")} == {"j.jsonl", "j.judge.jsonl"}
    assert [f.read_text().count("\n") for f in (tmp_path / "j.jsonl", tmp_path / "j.judge.jsonl")] == [8, 8]


def test_a_judge_that_fails_half_way_goes_on_where_it_was(server, options):
    asked_of_judge = []

    def broken(body):
        if SHOWN.search(body["messages"][-1]["content"]) and len(asked_of_judge) == 3:
            return (403, {}, b"{}")
        if SHOWN.search(body["messages"][-1]["content"]):
            asked_of_judge.append(body)
        return reply(body)

    server.reply = broken
    rows = Rows(records())
    with pytest.raises(InputError, match="403"):
        synthesize.apply(rows, **options, concurrency=1)
    assert len(rows) == 4
    server.reply, before = reply, len(server.bodies)
    facts = synthesize.apply(rows, **options, concurrency=1)
    assert len(server.bodies) - before == 8 - 3  # the eight answers and three verdicts are there already
    again, before = Rows(records()), len(server.bodies)
    assert synthesize.apply(again, **options) == facts
    assert list(again) == list(rows)
    assert len(server.bodies) == before


def test_costs_of_both_models_are_told_first(server, options, capsys):
    price, judge = (
        {"input": 1.0, "output": 10.0},
        {"model": "wise", "endpoint": server.url, "price": {"input": 2.0, "output": 20.0}},
    )
    given = {**options, "max_tokens": 100, "price": price, "judge": judge}
    facts = synthesize.apply(Rows(records()), **given, estimate=True)
    numbers = facts["numbers"]
    assert (numbers["estimated requests"], numbers["of these requests to the judge"]) == (8 + 8, 8)
    # the writer: 8 requests of 16 bytes / 4; the judge: 8 of 200, the prompt and two answers of 100
    writer, judged = 8 * 16 / 4, 8 * (200 + 16 / 4 + 200)
    assert numbers["estimated tokens asked"] == writer + judged
    assert numbers["most tokens answered"] == 8 * 100 + 8 * 32
    cost = (writer * 1 + 800 * 10 + judged * 2 + 8 * 32 * 20) / 1e6
    assert numbers["estimated cost"] == pytest.approx(cost)
    assert "(8 of the requests to the judge)" in capsys.readouterr().err
    with pytest.raises(InputError, match="beyond the budget"):
        synthesize.apply(Rows(records()), **given, budget=cost / 2)
    assert server.bodies == []


def test_a_preference_that_is_judged_anew_is_replaced(options):
    turns = [{"role": "user", "content": "Hi"}]
    pair = Preference(
        turns, [[{"role": "assistant", "content": text}] for text in ("Hello.", "Hello to you.")], Origin("a", 1)
    )
    rows = Rows([pair])
    method = {"name": "ai_feedback", "answers": 0, "row_answers": True}
    synthesize.apply(rows, **{**options, "method": method})
    (left,) = [record for _, record in rows]
    assert left.chosen[0]["content"] == "Hello to you."
    assert rows.history(0)[-1].reason == "its answers were judged anew"


def weighed(tokens):
    """A completion whose first token has these (token, log p)."""
    top = [{"token": token, "logprob": p} for token, p in tokens]
    choice = {"message": {"content": "A"}, "finish_reason": "length", "logprobs": {"content": [{"top_logprobs": top}]}}
    return (200, {}, json.dumps({"choices": [choice]}).encode())


def test_an_endpoint_gives_log_probabilities(server, options):
    def soft(body):
        shown = SHOWN.search(body["messages"][-1]["content"])
        if shown is None:
            return reply(body)
        if len(shown[1]) > len(shown[2]):
            return weighed([("A", math.log(0.5)), (" A", math.log(0.3)), ("B", math.log(0.2))])
        return weighed([("B", math.log(0.9)), ("The", -3.0), ("A", math.log(0.1))])

    server.reply = soft
    rows = Rows(records(1))
    synthesize.apply(rows, **{**options, "method": {"name": "ai_feedback", "soft": True}})
    (record,) = made_of(rows, 1)
    assert record.scores == [
        0.8673,
        -0.8673,
    ]  # log(0.85 / 0.15) / 2: 0.8 where it stands first, 0.9 where it stands second
    judged = [body for body in server.bodies if "logprobs" in body]
    assert [(b["logprobs"], b["top_logprobs"], b["temperature"]) for b in judged] == [(True, 20, 0.0)] * 2


@pytest.mark.parametrize(
    "given",
    [
        weighed([("<think>", -0.1), ("Well", -3.0)]),
        weighed([]),
        "A",
        (200, {}, b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": []}}]}'),
    ],
)
def test_an_endpoint_without_them_is_named(server, options, given):
    why = "a pair without a better answer: no verdict, no log-probabilities of the letters"
    server.reply = lambda body: given if SHOWN.search(body["messages"][-1]["content"]) else reply(body)
    facts = synthesize.apply(Rows(records(2)), **{**options, "method": {"name": "ai_feedback", "soft": True}})
    assert facts["tables"][1]["rows"] == [[why, 2]]
    assert "the judge gave no verdict" in facts["summary"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "paraphrase", "judge": {"model": "m"}}, "synthesize.judge is for a method that judges"),
        ({"judge": {"modell": "m"}}, 'synthesize.judge: unknown key "modell". Did you mean "model"'),
        ({"judge": {"endpoint": "http://localhost:1"}}, "synthesize.judge: model is missing"),
        ({"judge": {"model": "no/such/folder"}}, "no/such/folder"),
        ({"judge": {"model": "starter", "key_env": "K"}}, "synthesize.judge.key_env is for an endpoint"),
        ({"judge": {"model": "x", "endpoint": "localhost:1"}}, r'synthesize.judge.endpoint: "localhost:1" is no address'),
        ({"judge": {"model": "x", "endpoint": "http://localhost:1", "key_env": "NOT_SET"}},
         "synthesize.judge.key_env: the environment variable NOT_SET is not set"),
        ({"judge": {"model": "x", "endpoint": "http://localhost:1/v1"}, "price": {"input": 1, "output": 1}, "budget": 1},
         "budget needs synthesize.judge.price"),
        ({"temperature": 0}, "temperature is 0"),
        ({"method": {"name": "ai_feedback", "principles": "none.yaml"}}, "none.yaml cannot be read"),
        ({"method": {"name": "ai_feedback", "answer": 3}}, 'unknown key "answer". Did you mean "answers"'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_a_row_is_read(wrong, said):
    with pytest.raises(InputError, match=said):
        synthesize.check(**{"method": "ai_feedback", "model": "m", "endpoint": "http://localhost:1/v1", **wrong})


def test_local_log_probabilities_are_the_models_own(tiny_folder, tmp_path):
    """The probability of a letter is that of its tokens behind the rendered request, by transformers' own forward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.data.synthesis._journal import Journal
    from tunesmith.data.synthesis._local import Local
    from tunesmith.data.synthesis._rounds import Request, ask

    local, journal = Local(str(tiny_folder)), Journal(tmp_path / "j", "m")
    requests = [Request(ask(text), 4, 0.0, 0, True, ("A", "B", "AB")) for text in ("one", "two and more")]
    local.answer(requests, journal)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    for request in requests:
        rendered = tokenizer.apply_chat_template(request.as_messages(), add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(rendered, add_special_tokens=False).input_ids
        for choice, told in json.loads(journal.get(request)).items():
            ids = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            wanted = sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))
            assert told == pytest.approx(wanted, abs=1e-4)
    plain = Request(ask("one"), 8, 0.7, 3)
    local.answer([plain], journal)  # it writes as before it weighed
    fresh, other = Local(str(tiny_folder)), Journal(tmp_path / "k", "m")
    fresh.answer([plain], other)
    assert journal.get(plain) == other.get(plain) or str(journal.get(plain)) == str(other.get(plain))


def test_a_request_beyond_the_context_is_counted_and_ends_nothing(tiny_folder, tmp_path):
    from tunesmith.data.synthesis._journal import Journal
    from tunesmith.data.synthesis._local import Local
    from tunesmith.data.synthesis._rounds import NoAnswer, Request, ask

    local, long = Local(str(tiny_folder)), "long " * 5000
    requests = [
        Request(ask(text), 4, 0.0, 0, True, choices) for text in (long, "short") for choices in ((), ("A", "B"))
    ]
    with pytest.raises(InputError, match="its context is"):
        local.answer(requests[:1], Journal(tmp_path / "i", "m"))
    journal = Journal(tmp_path / "j", "m")
    local.answer(list(reversed(requests)), journal)
    found = [journal.get(request) for request in requests]
    assert [str(one) for one in found[:2] if isinstance(one, NoAnswer)] == [
        "a request longer than the model's context"
    ] * 2
    assert set(json.loads(found[3])) == {"A", "B"}


def test_the_starter_answers_and_judges_itself(tunesmith_cli, tmp_path):
    """Prompts in, preference rows out, by the command line alone: a set that training on preferences reads."""
    from tunesmith.data.sources import load

    source = tmp_path / "prompts.jsonl"
    asked = ["What is 3 plus 4?", "Sort these words: pear, fig, apple.", "Say hello.", "Where is the ball?"]
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    method = '{"name": "ai_feedback", "soft": true, "tie": 0.0, "answers": 3}'
    arguments = [
        "data", "prepare", source, "--output", tmp_path / "set", "--set", f"synthesize.method={method}",
        "--set", "synthesize.model=starter", "--set", "synthesize.temperature=1.0", "--set", "synthesize.max_tokens=16",
        "--set", f"synthesize.journal={tmp_path / 'j.jsonl'}", "--set", "split=false", "--json",
    ]  # fmt: skip
    code, out, err = tunesmith_cli(*arguments)
    assert code == 0, err
    made = load(str(tmp_path / "set" / "preference")).records
    assert json.loads(out)["rows"] == 4 + len(made) or len(made) <= 4
    assert len(made) >= 1
    for record in made:
        assert isinstance(record, Preference)
        assert record.scores == sorted(record.scores, reverse=True)
        assert record.extra["provenance"]["judge"] == "starter"
    assert "on average (0.50: no bias to a place)" in err

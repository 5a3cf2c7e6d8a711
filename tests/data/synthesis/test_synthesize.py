"""The step: estimated first, kept within a budget, resumed, the same rows again, with their provenance; and a local model."""

import json

import pytest

from tunesmith.data.records import Chat, Origin
from tunesmith.data.rows import Rows
from tunesmith.data.steps import synthesize
from tunesmith.errors import InputError


def records(n=5):
    return [_chat(word, i + 1) for i, word in enumerate(["rain", "snow", "wind", "fire", "sand"][:n])]


def _chat(word, row):
    turns = [{"role": "user", "content": f"Tell me of {word}."}, {"role": "assistant", "content": f"{word} is."}]
    return Chat(turns, [False, True], Origin("a", row))


@pytest.fixture
def options(server, tmp_path):
    server.reply = lambda body: "Say it of " + body["messages"][0]["content"].split("Tell me of ")[1].split(".")[0]
    return {"method": "paraphrase", "model": "m", "endpoint": server.url, "journal": str(tmp_path / "j.jsonl")}


def test_rows_are_added_with_their_provenance(server, options):
    rows = Rows(records())
    facts = synthesize.apply(rows, **options)
    made = [record for i, record in rows if i >= 5]
    assert [r.messages[0]["content"] for r in made] == [
        f"Say it of {w}" for w in ("rain", "snow", "wind", "fire", "sand")
    ]
    assert made[1].extra["provenance"] == {
        "method": "paraphrase", "model": f"m at {server.url}", "from": "a, row 2", "changed": "prompt",
    }  # fmt: skip
    assert facts["numbers"]["estimated requests"] == len(server.bodies) == 5


def test_a_second_run_asks_nothing_and_makes_the_same(server, options):
    first, second = Rows(records()), Rows(records())
    facts = synthesize.apply(first, **options)
    asked = len(server.bodies)
    assert synthesize.apply(second, **options) == facts
    assert list(second) == list(first)
    assert len(server.bodies) == asked


def test_an_interrupted_run_goes_on(server, options):
    whole, fine = Rows(records()), server.reply
    server.reply = lambda body: (403, {}, b"{}") if "wind" in body["messages"][0]["content"] else fine(body)
    with pytest.raises(InputError):
        synthesize.apply(whole, **options, concurrency=1)
    assert len(whole) == 5
    asked, server.reply = len(server.bodies), fine
    synthesize.apply(whole, **options, concurrency=1)
    assert len(whole) == 10
    assert len(server.bodies) - asked == 3  # wind, fire, sand


def test_estimate_and_budget_ask_nothing(server, options):
    rows = Rows(records())
    price = {"input": 1000.0, "output": 2000.0}
    facts = synthesize.apply(rows, **options, price=price, estimate=True, max_tokens=100)
    numbers = facts["numbers"]
    assert numbers["most tokens answered"] == 500
    assert numbers["estimated cost"] == pytest.approx((numbers["estimated tokens asked"] * 1000 + 500 * 2000) / 1e6)
    with pytest.raises(InputError, match="beyond the budget"):
        synthesize.apply(rows, **options, price=price, max_tokens=100, budget=0.5)
    assert server.bodies == []
    assert len(rows) == 5


def test_what_is_like_a_row_there_is_is_left_out(server, options):
    server.reply = lambda body: "Tell me of rain" if "<instruction>" in body["messages"][0]["content"] else "It falls."
    rows = Rows(records())
    facts = synthesize.apply(rows, **{**options, "method": "evol_instruct"}, rows_used=2)
    assert len(rows) == 5
    assert {why for why, _ in facts["tables"][0]["rows"]} <= {
        "an instruction that did not change",
        "a row like one there is",
    }


def _kept(journal):
    lines = [json.loads(line) for line in journal.file.read_text().splitlines()]
    return {bytes.fromhex(line["key"]): (line["answer"], line.get("why")) for line in lines}


def test_a_local_model_answers_alike_in_any_batch(tiny_folder, tmp_path):
    """What the tiny random model says is no paraphrase; that it is asked, heard, and kept is what is tested here."""
    from tunesmith.data.synthesis._journal import Journal
    from tunesmith.data.synthesis._local import Local
    from tunesmith.data.synthesis._rounds import Sampling, ask

    requests = [Sampling(12, 0.8, 0).request(ask(text), i) for i, text in enumerate(["one", "two and more", "three"])]
    local = Local(str(tiny_folder))
    together, alone = Journal(tmp_path / "a", "m"), Journal(tmp_path / "b", "m")
    local.answer(requests, together)
    for request in reversed(requests):
        local.answer([request], alone)
    answers = [_kept(together)[k] for k in together.places]
    assert _kept(together) == _kept(alone)
    assert len(set(answers)) == 3
    rows = Rows(records(2))
    facts = synthesize.apply(
        rows, method="paraphrase", model=str(tiny_folder), max_tokens=8, journal=str(tmp_path / "c")
    )
    assert sum(count for _, count in facts["tables"][0]["rows"]) + len(rows) - 2 == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "paraphase"}, 'no synthesis "paraphase"|Did you mean "paraphrase"'),
        ({"method": {"name": "paraphrase", "copys": 2}}, 'unknown key "copys". Did you mean "copies"'),
        ({"endpoint": "localhost:1"}, "is no address"),
        ({"endpoint": None, "model": "no/such/folder"}, "no/such/folder"),
        ({"endpoint": None, "model": "starter", "key_env": "K"}, "a local model needs no key"),
        ({"price": {"in": 1}}, 'unknown key "in"'),
        ({"budget": 1.0}, "needs synthesize.price"),
        ({"method": {"name": "constitutional", "principles": []}}, "should be a list of sentences"),
    ],
)
def test_what_is_wrong_is_said_before_a_row_is_read(wrong, said):
    with pytest.raises(InputError, match=said):
        synthesize.check(**{"method": "paraphrase", "model": "m", "endpoint": "http://localhost:1/v1", **wrong})


def test_an_answer_cut_off_makes_no_row_and_is_counted(server, options):
    fine, cut = server.reply, {"choices": [{"message": {"content": "Say it of"}, "finish_reason": "length"}]}
    server.reply = lambda body: (
        (200, {}, json.dumps(cut).encode()) if "wind" in body["messages"][0]["content"] else fine(body)
    )
    rows = Rows(records())
    facts = synthesize.apply(rows, **options)
    assert len(rows) == 9
    assert facts["tables"][0]["rows"] == [["an answer cut off at max_tokens", 1]]
    asked = len(server.bodies)
    assert synthesize.apply(Rows(records()), **options) == facts
    assert len(server.bodies) == asked  # it is not asked again


def test_the_estimate_counts_what_later_requests_quote(server, options):
    method = {"name": "constitutional", "rounds": 2}
    facts = synthesize.apply(Rows(records()), **{**options, "method": method}, estimate=True, max_tokens=100)
    # per row: 5 requests; answer quoted in critique 1, revision 1; critique 1; the same for the second round: 6
    assert facts["numbers"]["estimated requests"] == 25
    assert facts["numbers"]["estimated tokens asked"] >= 5 * 6 * 100


def test_the_journal_is_no_part_of_the_recipe(tmp_path):
    from tunesmith.data import recipe

    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    options = {
        "method": "paraphrase",
        "model": "m",
        "endpoint": "http://localhost:1/v1",
        "journal": str(tmp_path / "j.jsonl"),
    }
    section = recipe.check_section({"synthesize": options})
    before = recipe.make(str(tmp_path / "rows.jsonl"), section, 0)
    (tmp_path / "j.jsonl").write_text("{}\n")
    assert recipe.make(str(tmp_path / "rows.jsonl"), section, 0) == before

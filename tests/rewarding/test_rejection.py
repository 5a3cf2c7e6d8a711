"""Rejection sampling: which answers become rows, that they train as they are, and that an interrupted call goes on."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from letter_models import save_policy
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import tunesmith
from builders import byte_tokenizer
from tunesmith.data.records import Origin, Prompt
from tunesmith.data.sources import load
from tunesmith.errors import InputError
from tunesmith.evaluation.items import Item
from tunesmith.rewarding import candidates
from tunesmith.rewarding.candidates import Answer, Question
from tunesmith.rewarding.rejection import Choice, rows_of, usable

ASKED = [{"prompt": "one"}, {"prompt": "two, and it is longer", "category": "long"}, {"prompt": "three"}]
WAYS = {"best_of": 6, "max_new_tokens": 8, "seed": 3}
LINEAGE = {"method": "best of 5"}


def question(**extra):
    record = Prompt([{"role": "user", "content": "q"}], Origin("f", 7), extra=extra)
    return Question(Item(record, record.prompt), (1, 2))


def made(choice, answers, scores):
    """Return the records that a choice makes of answers, and what was left out."""
    left_out = Counter()
    answers, scores = [a if isinstance(a, Answer) else Answer(a, True) for a in answers], np.array(scores)
    places = usable(answers, scores, left_out)
    rows = list(rows_of(question(check={"rule": "exact"}), answers, scores, places, choice, LINEAGE, left_out))
    return [record for record, _ in rows], [score for _, score in rows], dict(left_out)


def said(record):
    return record.messages[-1]["content"]


def test_the_best_become_chats():
    records, scores, left_out = made(
        Choice(keep=2), ["a", "b", "c", "b", "", Answer("", False)], [0.5, 2.0, 1.0, 2.0, 9, 9]
    )
    assert [said(r) for r in records] == ["b", "c"]
    assert scores == [2.0, 1.0]
    assert records[0].trained == [False, True]
    assert records[0].extra == {"check": {"rule": "exact"}, "provenance": LINEAGE | {"score": 2.0}}
    assert left_out == {
        "answers that reach max_new_tokens": 1,
        "empty answers": 1,
        "answers that are there already": 1,
    }


def test_none_below_the_bound():
    records, _, left_out = made(Choice(keep=3, min_reward=1.0), ["a", "b", "c"], [0.5, 2.0, 1.0])
    assert [said(r) for r in records] == ["b", "c"]
    records, _, left_out = made(Choice(min_reward=3.0), ["a", "b"], [0.5, 2.0])
    assert (records, left_out) == ([], {"prompts whose best reward is below 3": 1})
    records, _, left_out = made(Choice(), ["a", "b"], [np.nan, np.nan])
    assert records == []
    assert left_out == {"answers beyond the reward model's context": 2, "prompts without an answer of use": 1}


def test_pairs_and_ranked_rows():
    (pair,), (score,), _ = made(Choice("pairs"), ["a", "b", "c"], [0.5, 2.0, 1.0])
    assert [turns[0]["content"] for turns in pair.answers] == ["b", "a"]
    assert (pair.scores, score) == ([2.0, 0.5], 2.0)
    (ranked,), _, _ = made(Choice("ranked"), ["a", "b", "c"], [0.5, 2.0, 0.5])
    assert [turns[0]["content"] for turns in ranked.answers] == ["b", "a", "c"]
    assert ranked.scores == [2.0, 0.5, 0.5]
    for scores, margin, bound in (([1.0, 1.0], 0.0, ""), ([1.0, 0.5], 0.5, " by more than 0.5")):
        records, _, left_out = made(Choice("pairs", min_margin=margin), ["a", "b"], scores)
        assert records == []
        assert left_out == {f"prompts whose best answer is not better than their worst{bound}": 1}


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(keep=0), "keep is 0; of 4 answers it must be from 1 to 4"),
        (Choice("pair"), 'there is no form "pair" of rows; there are chat, pairs, ranked. Did you mean "pairs"'),
        (Choice(keep=5), "keep is 5"),
        (Choice("pairs", keep=2), "keep is for rows of single answers; pairs rows hold several"),
        (Choice("pairs", min_margin=-1), "min_margin is -1"),
        (Choice(min_margin=1), "min_margin is for pairs and ranked rows"),
    ],
)
def test_a_wrong_choice_is_said(choice, sentence):
    with pytest.raises(InputError, match=sentence):
        choice.check(4)
    with pytest.raises(InputError, match="pairs rows take 2 answers at least"):
        Choice("pairs").check(1)


def test_rows_train_as_they_are(policy, reward, rows, tmp_path):
    data, out = rows(*ASKED), str(tmp_path / "best.jsonl")
    found = tunesmith.sample(policy, data=data, reward=reward, output=out, **WAYS)
    assert (found["rows"], found["prompts"], found["answers"]) == (3, 3, 18)
    loaded = load(out)
    assert loaded.kinds == {"chat"}
    by_prompt = {r.messages[0]["content"]: r for r in loaded.records}
    assert set(by_prompt) == {"one", "two, and it is longer", "three"}
    long = by_prompt["two, and it is longer"]
    assert long.extra["category"] == "long"
    lineage = long.extra["provenance"]
    assert {k: lineage[k] for k in ("method", "model", "reward", "seed", "from")} == {
        "method": "best of 6",
        "model": policy,
        "reward": reward,
        "seed": 3,
        "from": f"{data}, row 2",
    }
    kept = [r.extra["provenance"]["score"] for r in loaded.records]
    assert found["metrics"]["reward_kept"]["value"] == pytest.approx(np.mean(kept))
    metrics = [found["metrics"][f"reward_best_of_{k}"]["value"] for k in (1, 2, 4, 6)]
    assert metrics == sorted(metrics)


def test_a_preference_set_of_its_own(policy, reward, rows, tmp_path, monkeypatch):
    """The answers are there already: with another form nothing is sampled again, and the pairs' scores agree with `score`."""
    data = rows(*ASKED)
    tunesmith.sample(policy, data=data, reward=reward, output=str(tmp_path / "best.jsonl"), **WAYS)
    monkeypatch.setattr(candidates, "_draw", lambda *_: pytest.fail("sampled again"))
    for form in ("pairs", "ranked"):
        out = str(tmp_path / f"{form}.jsonl")
        tunesmith.sample(policy, data=data, reward=reward, output=out, form=form, **WAYS)
        loaded = load(out)
        assert loaded.kinds == {"preference"}
        scored = tunesmith.score(reward, data=out)
        assert scored["metrics"]["preference_accuracy"]["value"] == 1
        margins = [r.scores[0] - r.scores[-1] for r in loaded.records]
        assert min(margins) > 0
        if form == "pairs":
            assert scored["metrics"]["reward_margin"]["value"] == pytest.approx(np.mean(margins), abs=1e-6)


def test_an_interrupted_call_goes_on(policy, reward, rows, tmp_path, monkeypatch):
    data = rows(*({"prompt": "a" * (5 * i)} for i in range(1, 7)))
    monkeypatch.setattr("tunesmith.model.generate.BATCH_TOKENS", 700)  # a question or two at a time
    whole = tmp_path / "whole.jsonl"
    tunesmith.sample(policy, data=data, reward=reward, output=str(whole), **WAYS)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "other" / "tokens"))
    drawn, draw = [], candidates._draw

    def count(*given):
        if len(drawn) == 2 and "stop" in drawn[0]:
            raise KeyboardInterrupt
        drawn.append(("stop", len(given[2])))
        return draw(*given)

    monkeypatch.setattr(candidates, "_draw", count)
    out = tmp_path / "again.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tunesmith.sample(policy, data=data, reward=reward, output=str(out), **WAYS)
    assert not out.exists()
    before, drawn[:] = len(drawn), [("go", 0)]
    tunesmith.sample(policy, data=data, reward=reward, output=str(out), **WAYS)
    assert before == 2
    assert sum(n for _, n in drawn) < 6  # what was there is not drawn again
    assert out.read_text() == whole.read_text()
    (journal,) = (tmp_path / "other" / "sampling").iterdir()  # a kill within a batch: some of its answers are there
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-2]))
    tunesmith.sample(policy, data=data, reward=reward, output=str(tmp_path / "third.jsonl"), **WAYS)
    assert (tmp_path / "third.jsonl").read_text() == whole.read_text()


def test_other_weights_are_asked_anew(reward, rows, tmp_path, monkeypatch):
    data, folder = rows({"prompt": "one"}), tmp_path / "policy"
    answers = []
    for n, odds in enumerate(({"a": 0.5, "x": 0.2, "<|im_end|>": 0.3}, {"b": 0.5, "x": 0.2, "<|im_end|>": 0.3})):
        save_policy(folder, odds)
        out = str(tmp_path / f"{n}.jsonl")
        tunesmith.sample(str(folder), data=data, reward=reward, output=out, form="ranked", **WAYS)
        answers.append(Path(out).read_text())
    assert '"a' in answers[0]
    assert '"content": "a' not in answers[1]


def test_prompts_are_asked_once_and_long_ones_left_out(policy, reward, rows, tmp_path):
    data = rows({"prompt": "one"}, {"prompt": "one"}, {"prompt": "a" * 300})
    found = tunesmith.sample(policy, data=data, reward=reward, output=str(tmp_path / "o.jsonl"), **WAYS)
    assert found["prompts"] == 1
    assert any("1 of 3 prompts are there already" in n for n in found["notices"])
    assert any("1 of 3 prompts fill the model's context of 256 tokens" in n for n in found["notices"])


def test_the_order_is_the_datas(policy):
    """Of rows a, b, a the second a is left out, not the first."""
    records = [Prompt([{"role": "user", "content": said}], Origin("f", i)) for i, said in enumerate("aba", 1)]
    once, _ = candidates.questions(records, byte_tokenizer(), 256)
    assert [question.item.record.origin.row for question in once] == [1, 2]


def test_an_answer_that_is_cut_off_has_no_score(policy, rows, tmp_path, monkeypatch):
    """By this rule an empty answer is right, and so would be one of which nothing but its being cut off is kept."""
    monkeypatch.setattr(candidates, "sample", lambda *_: [[Answer("a", True), Answer("", False)]])
    data, out = rows({"prompt": "one", "check": {"rule": "max_words", "n": 0}}), str(tmp_path / "o.jsonl")
    found = tunesmith.sample(policy, data=data, reward="rule", output=out, best_of=2)
    assert found["metrics"]["reward_best_of_2"]["value"] == found["metrics"]["reward_kept"]["value"] == 0.0
    assert found["left_out"] == {"answers that reach max_new_tokens": 1}


def test_lineage_names_the_adapter(policy, reward, rows, tmp_path):
    model = LlamaForCausalLM.from_pretrained(policy)
    adapter = str(tmp_path / "adapter")
    get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(adapter)
    out = str(tmp_path / "o.jsonl")
    tunesmith.sample(policy, adapter=adapter, data=rows(ASKED[0]), reward=reward, output=out, **WAYS)
    (record,) = load(out).records
    assert (record.extra["provenance"]["model"], record.extra["provenance"]["adapter"]) == (policy, adapter)


def test_the_command_line(policy, reward, rows, tmp_path, tunesmith_cli, refused):
    data, out = rows(*ASKED), tmp_path / "o.jsonl"
    ask = ("sample", policy, "--data", data, "--best-of", 6, "--reward", reward, "--max-new-tokens", 8)
    code, printed, err = tunesmith_cli(*ask, "--pairs", "--output", out, "--json")
    assert code == 0, err
    assert json.loads(printed)["rows"] == len(out.read_text().splitlines())
    assert "exists already" in refused(*ask, "--output", out)
    assert "ends with .jsonl" in refused(*ask, "--output", tmp_path / "o.json")
    assert "there is no folder" in refused(*ask, "--output", tmp_path / "not" / "o.jsonl")
    assert "two ways to write" in refused(*ask, "--output", tmp_path / "p.jsonl", "--pairs", "--ranked")
    assert "takes a reward" in refused("sample", policy, "--data", data, "--output", tmp_path / "p.jsonl")
    assert "empty.jsonl" in refused(*ask, "--output", tmp_path / "p.jsonl", "--data", rows(name="empty.jsonl"))
    code, _, err = tunesmith_cli(*ask, "--output", tmp_path / "p.jsonl", "--min-reward", 99)
    assert code == 2
    assert "no answer is left to write (" in err
    assert "prompts whose best reward is below 99: 3" in err


def test_rows_without_a_prompt_are_refused(policy, reward, rows, tmp_path):
    said = {"role": "assistant", "content": "a", "train": False}
    begun = {"messages": [{"role": "user", "content": "q"}, said]}
    with pytest.raises(InputError, match="holds no prompt to answer"):
        tunesmith.sample(policy, data=rows(begun), reward=reward, output=str(tmp_path / "o.jsonl"))


def test_a_place_that_cannot_keep_answers_is_said(policy, reward, rows, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file" / "tokens"))
    with pytest.raises(
        InputError, match=r"answers are kept in .*sampling/\w+.jsonl as they come, which cannot be used"
    ):
        tunesmith.sample(policy, data=rows(*ASKED), reward=reward, output=str(tmp_path / "o.jsonl"), **WAYS)

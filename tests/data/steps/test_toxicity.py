"""Toxicity: whole words, disguises, windows, and every scorer; the step reports, and drops only when told to."""

import math
import sys
import types

import pytest
import torch

from tunesmith.data.lexicon import lines, toxic_words
from tunesmith.data.lexicon.toxic import WINDOW, hits, score
from tunesmith.data.records import Chat, Origin, Text
from tunesmith.data.rows import Rows
from tunesmith.data.steps import toxicity
from tunesmith.errors import InputError

CRUDE, MILD, HARM = "shit", "moron", "kill yourself"  # 0.4, 0.2, 0.9


def test_the_score_by_hand():
    assert score("a fine day") == 0.0
    assert score(f"you {MILD}") == pytest.approx(0.2)
    assert score(f"you {MILD}, {CRUDE}!") == pytest.approx(1 - 0.8 * 0.6)
    assert score(f"now {HARM.upper()}.") == pytest.approx(0.9)


def test_the_worst_hundred_words_count():
    near = " ".join([MILD, *["word"] * (WINDOW - 2), MILD])
    far = " ".join([MILD, *["word"] * (WINDOW - 1), MILD])
    assert score(near) == pytest.approx(1 - 0.8 * 0.8)
    assert score(far) == pytest.approx(0.2)
    assert score(" ".join([*["word"] * 500, near])) == score(near)


@pytest.mark.parametrize(
    "text",
    ["sh1t", "$hit", "sh!t", "s.h.i.t", "s h i t", "s-h-i-t", "shiiiiit", "SHIT", "sh*t", "s**t", "“shit”",
    "sh\u200bit"],
)  # fmt: skip
def test_disguises(text):
    assert score(f"this is {text} again") >= 0.4


@pytest.mark.parametrize(
    "text",
    [
        "Scunthorpe, Sussex and Penistone", "assassins classify cocktails", "the peacock in Dickens' analysis",
        "shiitake and matsushita", "U.S.A. and N.A.T.O.",
        "**bold** and *italic* c++ #1 2*3*4", "as5 b2b h264 x1y2", "a b c d e f", "Hello... soooo good!!! yesss",
        "pros and cons", "he put it on the table",
        "kill the process, yourself-contained", "pussycat", "shitake", "email@host", "https://example.com/a_b-c?d=e",
        "maine coonhound", "f(x) = a*b",
    ],
)  # fmt: skip
def test_no_false_alarms(text):
    assert hits(text) == []


def test_the_list_is_sound():
    weights = toxic_words()
    assert all(0 < w < 1 for w in weights.values())
    for language in ("en", "de", "es", "fr"):
        listed = [w for _, own, *words in lines("toxicity") for w in words if own == language]
        assert len(listed) == len(set(listed)), sorted(w for w in set(listed) if listed.count(w) > 1)
        assert all(w == w.lower() == w.strip() for w in listed)


def rows_of(*texts):
    rows = Rows([Text(t, Origin("x.jsonl", i + 1)) for i, t in enumerate(texts)])
    rows.step = "toxicity"
    return rows


def test_the_step_reports_and_drops_only_above_most():
    texts = ["fine", f"you {MILD}", f"{CRUDE} {HARM}", ""]
    rows = rows_of(*texts)
    facts = toxicity.apply(rows)
    assert len(rows) == 4
    assert rows.column("toxicity").tolist() == pytest.approx([0, 0.2, 0.94, 0])
    assert facts["numbers"]["at_least_0.5"] == 1
    assert sum(facts["histograms"][0]["counts"]) == 4
    assert facts["tables"][0]["rows"][0] == ["x.jsonl, row 3", 0.94, 0.94]
    rows = rows_of(*texts)
    toxicity.apply(rows, most=0.8)
    assert [i for i, _ in rows] == [0, 1, 3]
    assert [f.reason for f in rows.fates] == ["toxicity 0.94, at most 0.8 wanted"]
    with pytest.raises(InputError, match=r"toxicity\.most should be between 0 and 1, found 3"):
        toxicity.check(most=3)


def test_answers_have_their_own_column():
    turns = [{"role": "user", "content": CRUDE}, {"role": "assistant", "content": MILD}]
    rows = Rows([Chat(turns, [False, True], Origin("x", 1))])
    toxicity.apply(rows)
    assert rows.column("toxicity")[0] == pytest.approx(0.4)
    assert rows.column("toxicity_answer")[0] == pytest.approx(0.2)


def test_profanity_check(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "profanity_check", types.SimpleNamespace(predict_prob=lambda said: [len(t) / 10 for t in said])
    )
    rows = rows_of("abc", "", "abcdefghi")
    toxicity.apply(rows, scorer="profanity-check", most=0.8)
    assert rows.column("toxicity").tolist() == pytest.approx([0.3, 0, 0.9])
    assert len(rows) == 2
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(InputError, match=r"pip install 'tunesmith\[profanity\]'"):
        toxicity.check(scorer="profanity-check")


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory, tiny_folder):
    """A tiny random sequence classifier beside the byte tokenizer."""
    import shutil

    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "classifier"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(
        tiny_folder, id2label={0: "non-toxic", 1: "TOXIC"}, label2id={"non-toxic": 0, "TOXIC": 1}, pad_token_id=257
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_classifier_gives_what_it_gives_alone(classifier_folder):
    """In batches of any lengths: the softmax of each text by itself, at the class whose name says toxic."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    net, tok = (
        AutoModelForSequenceClassification.from_pretrained(classifier_folder),
        AutoTokenizer.from_pretrained(classifier_folder),
    )
    texts = ["a", "longer than that", "b" * 300]
    found = toxicity.classifier(str(classifier_folder))(texts)
    for text, value in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = net(**tok(text, return_tensors="pt", truncation=True, max_length=256)).logits[0]
        assert value == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-5)
    other = toxicity.classifier(str(classifier_folder), "non-toxic")(texts)
    assert [a + b for a, b in zip(found, other, strict=True)] == pytest.approx([1, 1, 1], abs=1e-5)
    rows = rows_of(*texts)
    toxicity.apply(rows, scorer="model", model=str(classifier_folder))
    assert rows.column("toxicity").tolist() == pytest.approx(found, abs=1e-6)


def test_models_that_cannot_score(classifier_folder, tiny_folder, tmp_path):
    import shutil

    with pytest.raises(InputError, match="has no trained head"):
        toxicity.classifier(str(tiny_folder))
    with pytest.raises(InputError, match=r'has no class "rude"; it has non-toxic, toxic'):
        toxicity.classifier(str(classifier_folder), "rude")
    pickled = tmp_path / "pickled"
    shutil.copytree(classifier_folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle, which can run code"):
        toxicity.classifier(str(pickled))
    with pytest.raises(InputError, match="needs `model`"):
        toxicity.check(scorer="model")
    with pytest.raises(InputError, match=r"there is no model folder \./nowhere"):
        toxicity.check(scorer="model", model="./nowhere")


def test_against_a_list_by_others(shared):
    """LDNOOBW names sexual topics too, which are none of ours: a third of it is met; clean sets have next to no alarms."""
    folder = shared / "data" / "eval" / "ldnoobw"
    if not folder.is_dir():
        pytest.skip("needs the shared data")
    words = [w for w in (folder / "en").read_text().splitlines() if w]
    share = sum(score(w) > 0 for w in words) / len(words)
    assert share > 0.3
    assert not math.isnan(share)


def test_clean_sets_have_next_to_no_alarms(shared):
    from tunesmith.data.sources import load

    file = shared / "data" / "eval" / "gsm8k" / "train.jsonl"
    if not file.is_file():
        pytest.skip("needs the shared data")
    rows = Rows(load([str(file)]).records)
    facts = toxicity.apply(rows)
    assert facts["numbers"]["at_least_0.5"] <= 1

"""Sets mixed in a run: what is trained on and in what order, each set under its own objective, and the same after a resume."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parallel import DRIVER, ended, furthest, launch, weights

import tunesmith
from builders import byte_tokenizer
from tunesmith.config import parse
from tunesmith.errors import InputError, Interrupted
from tunesmith.training.batch import epoch_order
from tunesmith.training.plan import plan_steps
from tunesmith.training.prepare import Prepared


def read(file: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.fixture
def files(tmp_path):
    """own.jsonl, 12 chats of growing length with a field hard; general.jsonl, 8 chats; book.jsonl, 6 texts."""
    own = [{"instruction": f"say {i}", "output": "ha " * (i + 1), "hard": (7 * i) % 12} for i in range(12)]
    general = [{"instruction": f"count {i}", "output": f"{i}"} for i in range(8)]
    book = [{"text": f"once {'upon ' * i}a time"} for i in range(6)]
    for name, rows in (("own", own), ("general", general), ("book", book)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("own", "general", "book")}


@pytest.fixture
def content(tiny_folder):
    """A run file's content with other values laid over it."""

    def make(data, **changes):
        train = {"device": "cpu", "dtype": "float32", "max_steps": 8, "batch_size": 4, **changes.pop("train", {})}
        return {"model": str(tiny_folder), "data": data, "validation": False, "train": train, **changes}

    return make


@pytest.fixture
def prepared(content):
    return lambda *args, **changes: Prepared(parse(content(*args, **changes)))


def epochs(run: Prepared, n: int) -> list[list[list[int]]]:
    """Return the steps of the first n epochs."""
    train, out = run.config.train, [[] for _ in range(n)]
    steps = plan_steps(run.examples.row_lengths, run.rows, train.seed, None, train.batch_size, run.difficulty)
    for done, step in steps:
        if done > n:
            return out
        out[int(np.ceil(done)) - 1].append(step.tolist())
    return out


def test_an_epoch_holds_what_mixing_says_and_tells_it(prepared, files):
    data = [{"path": files["own"], "cap": 9}, {"path": files["general"], "general": True}]
    run = prepared(data, mixing={"general_share": 0.2})
    lengths = run.examples.lengths
    # nine of own's mean tokens, and a quarter of that beside them in general's mean tokens
    general = round(9 * lengths[:12].mean() / 4 / lengths[12:].mean())
    assert [(m["examples"], m["rows"], m["available"]) for m in run.mix] == [(9, 9, 12), (general, general, 8)]
    for epoch in range(4):
        numbers = run.rows(epoch)
        assert [int((numbers < 12).sum()), int((numbers >= 12).sum())] == [9, general]
    first = run.rows(0)
    assert [m["tokens"] for m in run.mix] == [lengths[first[first < 12]].sum(), lengths[first[first >= 12]].sum()]
    assert run.mix[1]["share"] == pytest.approx(0.2, abs=0.05)
    scored = np.add.reduceat(run.examples.scored.astype(int), run.examples.offsets[:-1])
    assert sum(m["scored_tokens"] for m in run.mix) == scored[first].sum()
    (said,) = [n for n in run.notices if n.startswith("an epoch's mix: ")]
    assert f"{files['own']}: 9 examples (of 12), {run.mix[0]['tokens']} tokens" in said
    assert f"{files['general']}, general data: {general} examples (of 8), {run.mix[1]['tokens']} tokens" in said


def test_a_book_of_one_row_is_mixed_by_its_windows(prepared, files, tmp_path):
    book = tmp_path / "one.jsonl"
    book.write_text(json.dumps({"text": "and so on " * 400}) + "\n")
    data = [{"path": files["own"], "weight": 3}, {"path": str(book), "objective": "pretrain", "general": True}]
    run = prepared(data, mixing={"general_share": 0.3}, train={"max_length": 64})
    windows = -(-4000 // 63)  # 4000 bytes and the end; each window begins with the last token of the one before
    assert [m["available"] for m in run.mix] == [12, windows]
    assert run.mix[1]["share"] == pytest.approx(0.3, abs=0.02)
    assert (run.mix[0]["rows"], run.mix[1]["rows"]) == (12, 1)
    drawn = [set(run.rows(epoch)[36:].tolist()) for epoch in range(2)]
    assert not drawn[0] & drawn[1]  # other windows in the next epoch


def test_the_order_is_a_pure_function_of_seed_and_epoch(prepared, files):
    data = [{"path": files["own"]}, {"path": files["general"]}]
    mixing = {"temperature": 3, "curriculum": "length"}
    one, again = prepared(data, mixing=mixing), prepared(data, mixing=mixing)
    assert one.rows(3).tolist() == again.rows(3).tolist()
    assert epochs(one, 3) == epochs(again, 3)
    assert epochs(one, 3) != epochs(prepared(data, mixing=mixing, train={"seed": 1}), 3)


def test_one_set_without_mixing_is_shuffled_as_ever(prepared, files):
    run = prepared([{"path": files["own"]}])
    assert run.difficulty is None
    order = np.concatenate(epochs(run, 2)[1])
    assert order.tolist() == epoch_order(12, 0, 1).tolist()
    assert not any(n.startswith("an epoch's mix") for n in run.notices)


def test_a_curriculum_by_length_and_by_score(prepared, files):
    by_length = np.concatenate(epochs(prepared([{"path": files["own"]}], mixing={"curriculum": "length"}), 1)[0])
    # twelve rows in ten parts: rank * 10 // 12 puts ranks 0, 1 into the first part and 6, 7 into the sixth
    parts = [
        sorted(by_length[i].tolist() for i in p) for p in ([0, 1], [2], [3], [4], [5], [6, 7], [8], [9], [10], [11])
    ]
    assert parts == [[0, 1], [2], [3], [4], [5], [6, 7], [8], [9], [10], [11]]
    mixing = {"curriculum": "score", "score_field": "hard"}
    lowest = np.concatenate(epochs(prepared([{"path": files["own"]}], mixing=mixing), 1)[0])
    highest = prepared([{"path": files["own"]}], mixing={**mixing, "easiest": "highest"})
    highest = np.concatenate(epochs(highest, 1)[0])
    hard = (7 * np.arange(12)) % 12
    assert hard[lowest][2:6].tolist() == [2, 3, 4, 5]
    assert hard[highest][2:6].tolist() == [9, 8, 7, 6]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"hard": "often"', 'row 2: field "hard", which mixing.score_field names, is a string, expected a number'),
        ('"hard": null', 'row 2: field "hard", which mixing.score_field names, is null, expected a number'),
        ('"hard": true', 'row 2: field "hard", which mixing.score_field names, is true or false, expected a number'),
        ('"hard": NaN', 'row 2: field "hard", which mixing.score_field names, is no finite number, expected a number'),
        ('"easy": 1', 'row 2: field "hard", which mixing.score_field names, is missing'),
    ],
)
def test_a_row_without_a_score_is_named(prepared, tmp_path, value, words):
    file = tmp_path / "d.jsonl"
    rows = ['"hard": "2.5"', value]  # text that is a number passes for one: CSV has no other
    file.write_text("".join(f'{{"instruction": "a", "output": "b", {row}}}\n' for row in rows))
    with pytest.raises(InputError) as e:
        prepared([{"path": str(file)}], mixing={"curriculum": "score", "score_field": "hard"})
    assert f"{file}, {words}" in str(e.value)


def by_hand(files) -> list[tuple[list[int], list[bool]]]:
    """Return (ids, scored) of the chats of own.jsonl as sft and then the texts of book.jsonl as pretrain."""
    tokenizer = byte_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    out = []
    for row in read(files["own"]):
        before = ids(f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n")
        answer, after = ids(f"{row['output']}<|im_end|>"), ids("\n")
        out.append((before + answer + after, [False] * len(before) + [True] * len(answer) + [False] * len(after)))
    for row in read(files["book"]):
        text = [*ids(row["text"]), tokenizer.eos_token_id]
        out.append((text, [False] + [True] * (len(text) - 1)))
    return out


def test_every_set_is_rendered_for_its_own_objective(prepared, files):
    run = prepared([{"path": files["own"]}, {"path": files["book"], "objective": "pretrain"}])
    spans = list(zip(run.examples.offsets[:-1], run.examples.offsets[1:], strict=True))
    got = [(run.examples.ids[a:b].tolist(), run.examples.scored[a:b].tolist()) for a, b in spans]
    assert got == by_hand(files)
    assert run.examples.record.tolist() == list(range(18))
    swapped = prepared([{"path": files["book"], "objective": "pretrain"}, {"path": files["own"]}])
    (first, text) = (swapped.rows(0)[0], by_hand(files)[12][0])
    start, stop = swapped.examples.offsets[first : first + 2]
    assert swapped.examples.ids[start:stop].tolist() == text  # the records' order is kept, wherever their examples lie
    assert [o.file for o in swapped.examples.origins] == [files["book"]] * 6 + [files["own"]] * 12


def test_the_loss_of_a_multi_task_step_is_the_hand_mixed_one(content, files, tmp_path):
    """One step over all rows: the sum of every row's own nats over the sum of every row's own scored tokens."""
    from transformers import AutoModelForCausalLM

    data = [{"path": files["own"]}, {"path": files["book"], "objective": "pretrain"}]
    asked = content(data, train={"max_steps": 1, "batch_size": 18})
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    nats = count = 0.0
    for ids, scored in by_hand(files):
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        own = torch.tensor(scored[1:])
        nats -= float(logps.gather(1, torch.tensor(ids[1:])[:, None])[own].sum())
        count += int(own.sum())
    heard = []
    tunesmith.train(asked, output=str(tmp_path / "run"), listeners=(heard.append,))
    (step,) = [e for e in heard if e["event"] == "step"]
    assert step["scored_tokens"] == count
    assert step["loss"] == pytest.approx(nats / count, abs=1e-5)
    (mix,) = [e["sources"] for e in heard if e["event"] == "mix"]
    assert [m["objective"] for m in mix] == ["sft", "pretrain"]
    assert sum(m["scored_tokens"] for m in mix) == count
    assert f"{files['book']} for pretrain: 6 examples" in (tmp_path / "run" / "report.html").read_text()


def test_a_set_its_objective_cannot_read_is_refused(prepared, files):
    with pytest.raises(InputError, match="holds text rows; the objective sft reads chat"):
        prepared([{"path": files["own"], "objective": "pretrain"}, {"path": files["book"]}])
    with pytest.raises(InputError, match=r"validation: .*book\.jsonl holds text rows; the objective sft reads chat"):
        prepared([{"path": files["own"]}], validation={"path": files["book"]})


def test_validation_rows_of_their_own_may_be_of_several_kinds(prepared, files, tmp_path):
    """Chats by the run's objective, texts by the set's that reads them; pairs as asked; of a log what can be read."""
    data = [{"path": files["own"]}, {"path": files["book"], "objective": "pretrain"}]
    run = prepared(data, validation={"path": [files["book"], files["own"]]})
    rows = by_hand(files)
    found = {
        tuple(run.validation.ids[a:b].tolist()): run.validation.scored[a:b].tolist()
        for a, b in zip(run.validation.offsets[:-1], run.validation.offsets[1:], strict=True)
    }
    assert found == {tuple(ids): scored for ids, scored in rows}
    pairs, log = tmp_path / "pairs.jsonl", tmp_path / "log.jsonl"
    pairs.write_text(json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"}) + "\n")
    with pytest.raises(InputError, match=r"holds preference rows; the objective sft reads chat.*`as: chat`"):
        prepared([{"path": files["own"]}], validation={"path": str(pairs)})
    run = prepared([{"path": files["own"]}], validation={"path": str(pairs), "as": "chat"})
    assert [r.messages[-1]["content"] for r in run.held_out] == ["good"]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "rating": "good"}]
    log.write_text(json.dumps({"messages": turns}) + "\n")
    run = prepared([{"path": files["own"]}], validation={"path": str(log)})
    assert [type(r).__name__ for r in run.held_out] == ["Chat"]


def test_a_curriculum_that_ends_early_says_so(prepared, files):
    """12 rows, 4 a step: 2 steps are two thirds of an epoch; 3 are all of it."""
    mixing = {"curriculum": "length"}
    short = prepared([{"path": files["own"]}], mixing=mixing, train={"max_steps": 2}).notices
    assert any(n.startswith("the run ends after 67% of an epoch, so the hardest") for n in short)
    whole = prepared([{"path": files["own"]}], mixing=mixing, train={"max_steps": 3}).notices
    assert not any("the hardest" in n for n in whole)


def test_held_out_rows_are_scored_by_their_own_objective(prepared, files):
    data = [{"path": files["own"]}, {"path": files["book"], "objective": "pretrain"}]
    run = prepared(data, validation={"fraction": 0.5})
    rows = {tuple(ids): scored for ids, scored in by_hand(files)}
    assert {type(r).__name__ for r in run.held_out} == {"Chat", "Text"}
    for start, stop in zip(run.validation.offsets[:-1], run.validation.offsets[1:], strict=True):
        assert run.validation.scored[start:stop].tolist() == rows[tuple(run.validation.ids[start:stop].tolist())]


MIXED = {"temperature": 2, "curriculum": "score", "score_field": "hard"}


@pytest.fixture
def mixed_run(content, files, tmp_path):
    """Train a mixed multi-task run of 8 steps, over more than two epochs, interrupted after step `stop`."""
    scored = tmp_path / "scored.jsonl"
    scored.write_text("".join(json.dumps({"text": f"page {i} of it", "hard": i % 3}) + "\n" for i in range(5)))
    data = [{"path": files["own"], "cap": 8}, {"path": str(scored), "objective": "pretrain"}]

    def call(output, stop=None, resume=False, **changes):
        heard = []

        def listen(event):
            heard.append(event)
            if event["event"] == "step" and event["step"] == stop:
                raise KeyboardInterrupt

        asked = {**content(data, mixing=MIXED, train={"checkpoint_every": 1, "evaluate_every": 9}), **changes}
        with contextlib.suppress(KeyboardInterrupt, Interrupted):
            tunesmith.train(asked, output=str(tmp_path / output), listeners=(listen,), resume=resume)
        return [(e["step"], e["loss"], e["tokens"]) for e in heard if e["event"] == "step"]

    call.data, call.scored = data, scored
    return call


def test_a_resumed_mixed_run_goes_on_with_the_same_bits(mixed_run, tmp_path):
    from safetensors.torch import load_file

    whole = mixed_run("whole")
    assert whole[:5] == mixed_run("cut", stop=5)
    resumed = mixed_run("cut", resume=True)
    assert resumed[-3:] == whole[5:]
    a, b = (load_file(tmp_path / name / "result" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_resumed_run_refuses_another_mix(mixed_run, tmp_path):
    mixed_run("cut", stop=2)
    with pytest.raises(InputError, match=r"was begun with mixing\.temperature = 2, now it is 3"):
        mixed_run("cut", resume=True, mixing={**MIXED, "temperature": 3})
    with pytest.raises(InputError, match=r"was begun with data = .*'cap': 8.*now it is .*'cap': 4"):
        mixed_run("cut", resume=True, data=[{**mixed_run.data[0], "cap": 4}, mixed_run.data[1]])
    rows = read(mixed_run.scored)
    mixed_run.scored.write_text("".join(json.dumps({**row, "hard": 9 - row["hard"]}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"the data of .* has changed"):  # no token did, but the order would
        mixed_run("cut", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_processes_train_the_same_mixed_steps(mixed_run, content, tmp_path, size):
    alone = mixed_run("alone")
    asked = content(mixed_run.data, mixing=MIXED, train={"checkpoint_every": 1, "evaluate_every": 9})
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{"do": "train", "name": "many", "config": asked, "output": str(tmp_path / "many")}]))
    told = ended(launch([DRIVER, str(jobs)], size))
    assert [code for code, _, _ in told] == [0] * size, "\n".join(err for _, _, err in told)
    events = read(tmp_path / "many" / "events.jsonl")
    many = [(e["step"], e["loss"], e["tokens"]) for e in events if e["event"] == "step"]
    assert [(step, tokens) for step, _, tokens in many] == [(step, tokens) for step, _, tokens in alone]
    assert [loss for _, loss, _ in many] == pytest.approx([loss for _, loss, _ in alone], abs=1e-5)
    assert furthest(weights(tmp_path / "many"), weights(tmp_path / "alone")) < 1e-5

"""report.html from hand-made run folders: the numbers people read, what is void, what is escaped, what is missing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import InputError
from tunesmith.evaluation.report import write_report
from tunesmith.evaluation.report_chart import Series, downsample, line_chart, smooth, tick_labels, ticks
from tunesmith.evaluation.report_format import duration, memory, percent, setting, significant
from tunesmith.evaluation.report_metrics import Family, Measure
from tunesmith.evaluation.report_run import read_run

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Fails on a tag that is closed out of turn; keeps the text that is shown, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def metric(value: float, low: float, high: float, n: int = 200) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": n}


def start(**changes: Any) -> dict[str, Any]:
    return {
        "event": "start",
        "run": "runs/support",
        "model": "starter",
        "objective": "sft",
        "adapter": "lora",
        "steps": 4,
        "epochs": 2,
        "rows": 1200,
        "validation_rows": 60,
        "parameters": 2_000_000,
        "trained_parameters": 98_304,
        "resumed_from": None,
        **changes,
    }


def step(number: int, loss: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "epoch": number / 2,
        "loss": loss,
        "learning_rate": 2e-4,
        "grad_norm": 1.5,
        "tokens": 1000,
        "scored_tokens": 400,
        "seconds": 0.5,
        "tokens_per_second": 2000.0,
        "memory_bytes": 3 * 2**29,
        "cpu_percent": 90.0,
        **changes,
    }


def write(folder: Path, events: list[dict[str, Any]], **files: Any) -> Path:
    """Write a run's folder; files: results, environment, state as JSON, run as the text of run.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"v": 1, "time": 1_750_000_000.0 + i, **event}) for i, event in enumerate(events)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    for name, content in files.items():
        if name == "run":
            (folder / "run.yaml").write_text(content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def report(folder: Path) -> tuple[str, Page]:
    html = write_report(folder).read_text()
    return html, Page(html)


RESULTS = {
    "before": {"metrics": {"exact_match": metric(0.02, 0.0, 0.06), "validation_loss": metric(3.1, 3.0, 3.2)}},
    "after": {"metrics": {"exact_match": metric(0.81, 0.76, 0.85), "validation_loss": metric(0.9, 0.85, 0.95)}},
    "samples": [
        {
            "category": "sums",
            "prompt": [{"role": "user", "content": "What is 3 + 4?"}],
            "reference": "7",
            "before": "What is the day",
            "after": "7",
            "before_score": 0.0,
            "after_score": 1.0,
        }
    ],
    "train": {
        "steps": 4,
        "tokens": 1_234_567,
        "seconds": 75.0,
        "tokens_per_second": 19850.4,
        "peak_memory_bytes": 2**30,
    },
}


def test_a_finished_run_is_told_in_one_sentence_and_in_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "support"
    (folder / "result").mkdir(parents=True)
    events = [
        {"event": "inferred", "key": "train.epochs", "value": 2, "reason": "few rows: two passes"},
        {"event": "inferred", "key": "adapter", "value": {"name": "lora"}, "reason": "the model is large"},
        {"event": "notice", "message": "3 rows were cut."},
        start(),
        *[step(i, 4.0 - i) for i in (1, 2, 3, 4)],
        {"event": "end", "state": "done", "step": 4, "seconds": 75.0, "tokens": 4000},
    ]
    run_file = "model: {path: starter}\ndata: [{path: mine/support.jsonl}]\nadapter: {name: lora}\ntrain: {epochs: 2, seed: 17}\n"
    environment = {"python": "3.12.1", "memory_bytes": 8 * 2**30, "packages": {"torch": "2.13.0"}, "tunesmith": "0.1.0"}
    write(folder, events, results=RESULTS, run=run_file, environment=environment, state={"state": "done"})
    html, page = report(folder)

    headline = re.sub(r"<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", html).group(1))  # type: ignore[union-attr]
    assert headline == (
        "Held-out exact match rose from 2% (0–6) to 81% (76–85) on 200 prompts; validation loss fell from 3.10 to 0.900."
    )
    assert "98,304 of 2,000,000 parameters" in page.text
    assert "1,200 rows of support.jsonl" in page.text
    for tile in ("1,234,567", "19,850", "1 min 15 s", "1.00 GiB", "2 epochs"):
        assert tile in page.text
    assert "train.epochs 2 few rows: two passes" in page.text
    assert "adapter lora the model is large" in page.text
    assert "train.seed 17" in page.text
    assert "adapter.name" not in page.text  # it is told once, with its reason
    assert "What is 3 + 4? Reference 7 Before ✗ wrong What is the day After ✓ right 7" in page.text
    for other in ("3 rows were cut.", "torch 2.13.0", "8.00 GiB", "finished"):
        assert other in page.text
    assert f"tunesmith chat {folder}" in page.text
    assert f"tunesmith generate {folder} --prompt 'What is 3 + 4?'" in page.text
    assert "--resume" not in page.text
    for chart in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Processor use", "Memory"):
        assert f"<b>{chart}</b>" in html
    order = [
        html.index(f"<h2>{heading}")
        for heading in ("Measured", "The same", "What was", "How", "Notices", "Where", "Use")
    ]
    assert order == sorted(order)


def test_nothing_is_fetched_and_nothing_but_our_script_may_run(tmp_path: Path) -> None:
    html, page = report(write(tmp_path / "r", [start(), *[step(i) for i in range(1, 40)]], results=RESULTS))
    assert not re.search(r"https?:|[\"'(]//|@import|url\(", html)
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "action")
        assert not name.startswith("on")
        assert name != "href" or (tag, value) == ("link", "data:,")
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert page.tags.count("script") == 1


def test_text_of_the_user_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "</style><script>alert('x')</script>\"><img src=x onerror=alert(1)>\ud83d"
    results = {
        "before": {"metrics": {f"exact_match/{evil}": metric(0.1, 0.0, 0.2), evil: metric(0.1, 0.0, 0.2)}},
        "after": {"metrics": {f"exact_match/{evil}": metric(0.9, 0.8, 1.0), evil: metric(0.9, 0.8, 1.0)}},
        "samples": [
            {
                "category": evil,
                "prompt": [{"role": evil, "content": [{"type": "text", "text": evil}, {"type": evil}]}],
                "reference": evil,
                "before": evil,
                "after": evil,
            }
        ],
    }
    events = [
        {"event": "inferred", "key": evil, "value": evil, "reason": evil},
        {"event": "notice", "message": evil},
        start(model=evil, objective=evil, adapter=evil, run=evil),
        step(1),
        {"event": "evaluate", "step": 1, "metrics": {evil: metric(0.5, 0.4, 0.6)}},
        step(2),
        {"event": "evaluate", "step": 2, "metrics": {evil: metric(0.6, 0.5, 0.7)}},
        {"event": "end", "state": "failed", "step": 2, "message": evil},
    ]
    run_file = json.dumps({"data": [{"path": evil}], evil: evil})
    folder = write(
        tmp_path / "r", events, results=results, environment={evil: evil, "packages": {evil: evil}}, run=run_file
    )
    html, page = report(folder)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert html.count("<script>") == 1
    assert page.text.count("alert('x')") > 10


def test_a_resumed_run_drops_its_void_steps(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "r",
        [
            start(),
            *[step(i, 5.0) for i in (1, 2, 3, 4)],
            {"event": "evaluate", "step": 2, "metrics": {"validation_loss": metric(4.0, 3.9, 4.1)}},
            {"event": "evaluate", "step": 4, "metrics": {"validation_loss": metric(99.0, 98.0, 100.0)}},
            {"event": "end", "state": "interrupted", "step": 4},
            start(resumed_from=2),
            step(3, 2.0),
            {"event": "evaluate", "step": 3, "metrics": {"validation_loss": metric(1.5, 1.4, 1.6)}},
        ],
        state={"state": "running"},
    )
    run = read_run(folder)
    assert [(i, event["loss"]) for i, event in run.steps.items()] == [(1, 5.0), (2, 5.0), (3, 2.0)]
    assert list(run.evaluations) == [2, 3]
    assert (run.resumed, run.state, run.end) == ([2], "running", {})
    html, page = report(folder)
    assert "Validation loss fell from 4.00 at step 2 to 1.50 at step 3." in page.text
    assert "99.0" not in page.text
    assert "The run had reached step 3 of 4" in page.text
    assert 'class="mark"' in html


def test_a_loss_over_pairs_is_not_called_one_per_token(tmp_path: Path) -> None:
    assert "nats per scored token" in report(write(tmp_path / "a", [start(), step(1), step(2)]))[0]
    told = report(write(tmp_path / "b", [start(), step(1, rewards_margins=0.1), step(2, rewards_margins=0.2)]))[0]
    assert "nats per scored token" not in told
    assert "mean over the rows" in told


def test_a_run_started_anew_in_the_same_folder_voids_everything(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, [start(), step(1, 9.0), step(2, 9.0), start(), step(1, 3.0)]))
    assert [(i, event["loss"]) for i, event in run.steps.items()] == [(1, 3.0)]


def test_an_interrupted_run_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    before = {
        "before": {"metrics": {"validation_loss": metric(3.0, 2.9, 3.1)}},
        "samples": [
            {
                "category": None,
                "prompt": [{"role": "user", "content": "Hi"}],
                "reference": None,
                "answer": "Hm",
                "score": None,
            }
        ],
    }
    events = [
        start(),
        step(1, 4.0),
        step(2, None),
        {"event": "evaluate", "step": 2, "metrics": {"validation_loss": metric(2.0, 1.9, 2.1)}},
        {"event": "end", "state": "interrupted", "step": 2, "seconds": 1.0, "tokens": 2000},
    ]
    _, page = report(write(tmp_path / "a b", events, results=before))
    assert "Validation loss fell from 3.00 to 2.00 at step 2." in page.text
    assert "interrupted at step 2 of 4; it can be resumed" in page.text
    assert f"tunesmith train '{tmp_path}/a b/run.yaml' --resume" in page.text
    assert "tunesmith chat" not in page.text  # there is no result yet
    assert "One step had no finite loss (the first: step 2)" in page.text
    assert "Before Hm" in page.text
    assert "After" not in page.text


def test_a_run_that_a_guard_stopped_gives_its_message(tmp_path: Path) -> None:
    end = {"event": "end", "state": "stopped", "message": "step 2: the loss is no finite number"}
    _, page = report(write(tmp_path / "r", [start(), step(1), end]))
    assert "A guard stopped the run at step 1 of 4. step 2: the loss is no finite number" in page.text


def test_a_run_without_validation_does_not_claim_a_better_model(tmp_path: Path) -> None:
    _, page = report(write(tmp_path, [start(validation_rows=0), step(1, 4.0), step(2, 1.0)]))
    assert "Training loss went from 4.00 at step 1 to 1.00 at step 2" in page.text
    assert "does not say whether the model got better" in page.text
    assert "no row was held out" in page.text


def test_an_empty_folder_and_damaged_files_still_make_a_report(tmp_path: Path) -> None:
    _, page = report(tmp_path)
    assert "no training step to report yet" in page.text
    (tmp_path / "results.json").write_text('{"before": ')
    (tmp_path / "run.yaml").write_text("model: {path: [")
    (tmp_path / "events.jsonl").write_text(json.dumps(start()) + "\n" + json.dumps(step(1, 2.5)) + '\n{"event": "st')
    _, page = report(tmp_path)
    assert "results.json is damaged" in page.text
    assert "run.yaml is damaged" in page.text
    assert "2.50 at step 1" in page.text
    with pytest.raises(InputError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_close_results_are_not_called_better() -> None:
    family = Family("exact_match", [])
    assert family.change(Measure(0.5, 0.4, 0.6), Measure(0.55, 0.45, 0.65)) == "unclear"
    assert family.change(Measure(0.5, 0.4, 0.6), Measure(0.75, 0.65, 0.85)) == "better"
    assert family.change(Measure(0.75, 0.65, 0.85), Measure(0.5, 0.4, 0.6)) == "worse"
    assert Family("validation_loss", []).change(Measure(3.0, 2.9, 3.1), Measure(1.0, 0.9, 1.1)) == "better"
    assert Family("exact_match", []).change(Measure(0.5), Measure(0.5)) == "same"


def test_a_headline_says_when_chance_would_do(tmp_path: Path) -> None:
    results = {
        "before": {"metrics": {"exact_match": metric(0.5, 0.4, 0.6)}},
        "after": {"metrics": {"exact_match": metric(0.55, 0.45, 0.65)}},
    }
    _, page = report(write(tmp_path, [start(), step(1)], results=results))
    assert "rose from 50% (40–60) to 55% (45–65) on 200 prompts: too close to tell from chance" in page.text


def test_families_are_listed_best_first_and_averaged_where_no_total_was_measured(tmp_path: Path) -> None:
    before = {f"exact_match/{name}": metric(0.0, 0.0, 0.1, 25) for name in ("sort", "sums")}
    after = {"exact_match/sums": metric(0.6, 0.4, 0.8, 25), "exact_match/sort": metric(0.8, 0.6, 0.9, 25)}
    _, page = report(write(tmp_path, [start()], results={"before": {"metrics": before}, "after": {"metrics": after}}))
    assert "Held-out mean exact match rose from 0% to 70% over 2 families." in page.text
    assert page.text.index("sort n = 25 0% 0–10 80% 60–90 better") < page.text.index("sums n = 25")


def test_secrets_are_masked(tmp_path: Path) -> None:
    run_file = "track: [{name: wandb, api_key: s3cr3t}]\nhub: {token: hf_abc}\ntrain: {tokens_per_step: 4096}\n"
    html, page = report(write(tmp_path, [start()], run=run_file))
    assert "s3cr3t" not in html
    assert "hf_abc" not in html
    assert "train.tokens_per_step 4096" in page.text


def test_a_hundred_thousand_steps_stay_small_and_keep_their_spikes(tmp_path: Path) -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    kept = downsample(points)
    assert len(kept) <= 602
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert points[54_321] in kept
    assert points[77_777] in kept
    assert kept == sorted(kept)
    assert downsample(points[:600]) == points[:600]

    folder = write(tmp_path, [start(steps=30_000), *[step(i, 2.0 + i % 7) for i in range(1, 30_001)]])
    html, _ = report(folder)
    assert len(html) < 400_000


def test_smoothing_keeps_a_slope_and_a_level() -> None:
    line = [(float(i), 3.0) for i in range(300)]
    assert [y for _, y in smooth(line)] == pytest.approx([3.0] * 300)
    slope = [(float(i), 2.0 * i) for i in range(300)]
    assert [y for _, y in smooth(slope)][:290] == pytest.approx([y for _, y in slope][:290])
    # 120 points: two neighbours on each side
    assert smooth([(float(i), float(i == 60)) for i in range(120)])[58][1] == pytest.approx(0.2)


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert ticks(0.0, 3.4) == [0, 1, 2, 3, 4]
    assert ticks(0.61, 0.89) == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert ticks(2.0, 2.0)[0] <= 2.0 < ticks(2.0, 2.0)[-1]
    assert tick_labels([0.0, 1e-4, 2e-4]) == ["0", "1e-4", "2e-4"]
    assert tick_labels([0.0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert tick_labels([0.0, 20_000.0, 40_000.0]) == ["0", "20k", "40k"]


def test_a_chart_puts_its_points_where_they_belong() -> None:
    html = line_chart("Loss", "nats", [Series("loss", [(0.0, 4.0), (50.0, 1.0), (100.0, 0.0)], "main")])
    assert 'class="main" d="M0 0L500 750L1000 1000"' in html
    assert line_chart("Loss", "nats", [Series("loss", [], "main")]) == ""


def test_numbers_read_well() -> None:
    assert [significant(v) for v in (0, 3.14159, 0.0421, 2.5e-5, 81.23, 12345.6)] == [
        "0",
        "3.14",
        "0.042",
        "2.5e-5",
        "81.2",
        "12,346",
    ]
    assert [percent(v) for v in (0.0, 0.004, 0.81, 0.997, 1.0)] == ["0%", "0.4%", "81%", "99.7%", "100%"]
    assert [duration(v) for v in (0.84, 59.7, 75, 3600 * 5 + 61, 86400 * 2)] == [
        "0.8 s",
        "1 min 00 s",
        "1 min 15 s",
        "5 h 01 min",
        "2 d 00 h",
    ]
    assert [memory(v) for v in (512, 5 * 2**20, 3 * 2**29)] == ["512 bytes", "5.00 MiB", "1.50 GiB"]
    assert [setting(v) for v in (True, None, 2e-4, [1, 2], {"name": "lora"}, {"name": "lora", "r": 8})] == [
        "true",
        "none",
        "2e-4",
        "1, 2",
        "lora",
        "name: lora, r: 8",
    ]

"""What a run shows on standard error: plain lines where it is no terminal, a bar that always lets go of one that is."""

import io
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from tunesmith.training.progress import Progress

START = {
    "event": "start",
    "model": "starter",
    "objective": "sft",
    "adapter": "lora",
    "steps": 100,
    "epochs": 2.0,
    "rows": 1200,
    "validation_rows": 60,
    "parameters": 2_000_000,
    "trained_parameters": 98_304,
    "resumed_from": None,
}


def step(number: int, loss: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    facts = {"tokens": 1000, "scored_tokens": 100, "seconds": 0.5, "memory_bytes": 3 * 2**29}
    return {"event": "step", "step": number, "loss": loss, **facts, **changes}


def evaluate(number: int, loss: float) -> dict[str, Any]:
    metrics = {
        "validation_loss": {"value": loss, "n": 60, "low": loss - 0.1, "high": loss + 0.1},
        "exact_match": {"value": 0.41, "n": 60, "low": 0.3, "high": 0.5},
        "exact_match/sort": {"value": 0.9, "n": 6, "low": 0.5, "high": 1.0},
    }
    return {"event": "evaluate", "step": number, "metrics": metrics}


def lines(events: list[dict[str, Any]]) -> list[str]:
    out = io.StringIO()
    with Progress(console=Console(file=out, width=80)) as progress:
        for event in events:
            progress(event)
    return out.getvalue().splitlines()


def test_a_run_in_plain_lines() -> None:
    run = [START, *[step(i, 3.0 if i < 90 else 1.0) for i in range(1, 101)]]
    run += [evaluate(100, 1.25), {"event": "end", "state": "done", "step": 100, "tokens": 100_000, "seconds": 50.2}]
    shown = lines(run)
    assert shown[0] == (
        "Training starter with sft, lora adapter (98,304 of 2,000,000 parameters, 4.92%): 100 steps, 2 epochs of 1,200 rows, 60 held out"
    )
    assert len(shown) == 1 + 10 + 1 + 1
    assert shown[1] == "step 10/100  loss 3.00  2,000 tok/s  45 s left  1.50 GiB"
    # the last 20 steps: 81..89 at a loss of 3, 90..100 at 1 -> (9 * 3 + 11 * 1) / 20
    assert shown[10] == "step 100/100  loss 1.90  2,000 tok/s  1.50 GiB"
    assert shown[11] == "step 100/100  validation loss 1.25 (1.15–1.35), exact match 41% (30%–50%)"
    assert shown[12] == "Done at step 100: 100,000 tokens in 50 s"


def test_what_is_trained_is_told_with_its_share_and_its_file_s_size() -> None:
    on = {"adapter_on": "runs/a", "adapter_bytes": 196_608}
    assert (
        "lora adapter stacked on runs/a (98,304 of 2,000,000 parameters, 4.92%; the adapter takes 192 KiB)"
        in lines([{**START, **on, "adapter_how": "stack"}])[0]
    )
    assert "lora adapter on the base with runs/a merged in (98" in lines([{**START, **on, "adapter_how": "merge"}])[0]
    assert "with sft, continuing the adapter from runs/a (98" in lines([{**START, "adapter": "from runs/a"}])[0]
    full = {"adapter": "full", "adapter_bytes": None, "trained_parameters": 2_000_000}
    assert "with sft, full (2,000,000 parameters)" in lines([{**START, **full}])[0]
    tiny = {"trained_parameters": 4_000, "parameters": 8_000_000_000}
    assert "(4,000 of 8,000,000,000 parameters, 5e-5%)" in lines([{**START, **tiny}])[0]


def test_the_loss_shown_is_weighted_by_scored_tokens_and_survives_a_missing_one() -> None:
    shown = lines(
        [{**START, "steps": 3}, step(1, 1.0, scored_tokens=300), step(2, None), step(3, 2.0, scored_tokens=100)]
    )
    assert shown[3].startswith("step 3/3  loss 1.25  ")
    assert lines([{**START, "steps": 1}, step(1, float("nan"))])[1].startswith("step 1/1  loss –  ")


def test_the_latest_validation_loss_goes_along() -> None:
    shown = lines([START, evaluate(5, 1.25), step(10)])
    assert shown[2].endswith("  validation 1.25")


def test_a_resumed_run_counts_on_from_its_step() -> None:
    shown = lines([{**START, "resumed_from": 95}, *[step(i) for i in range(96, 101)]])
    assert shown[0].endswith("; resumed at step 95")
    assert [line.split()[1] for line in shown[1:]] == ["100/100"]


def test_inferred_values_are_aligned_and_markup_in_them_is_only_text() -> None:
    shown = lines(
        [
            {"event": "inferred", "key": "train.epochs", "value": 3, "reason": "few rows [red]x[/red]"},
            {"event": "inferred", "key": "optimizer.learning_rate", "value": 2e-4, "reason": "the usual"},
            {"event": "inferred", "key": "adapter", "value": {"name": "lora"}, "reason": "x" * 100},
            {"event": "notice", "message": "row 3 holds \x1b[2J and [bold]"},
        ]
    )
    assert shown[0] == "train.epochs            = 3      (few rows [red]x[/red])"
    assert shown[1] == "optimizer.learning_rate = 2e-4   (the usual)"
    assert shown[2] == "adapter                 = lora   (" + "x" * 100 + ")"  # not wrapped at 80 columns
    assert shown[3] == "Note: row 3 holds \N{REPLACEMENT CHARACTER}[2J and [bold]"


def test_inferred_values_are_shown_even_if_nothing_follows() -> None:
    assert lines([{"event": "inferred", "key": "a", "value": 1, "reason": "why"}]) == ["a = 1   (why)"]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("interrupted", "Interrupted"),
        ("stopped", "Stopped by a guard"),
        ("failed", "Failed"),
    ],
)
def test_other_endings(state: str, text: str) -> None:
    assert lines([{"event": "end", "state": state, "step": 7}]) == [f"{text} at step 7"]
    assert lines([{"event": "end", "state": state, "message": "told by the error itself"}]) == [text]


def test_quiet_shows_nothing_and_standard_output_stays_empty(capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with Progress(quiet=quiet) as progress:
            for event in (START, step(10), evaluate(10, 1.0), {"event": "end", "state": "done"}):
                progress(event)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert bool(shown.err) is not quiet


def test_forced_colour_does_not_bring_the_bar_into_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with Progress(console=Console(file=out)) as progress:
        progress(START)
        assert progress.bar is None


LIVE = """
import sys
from tunesmith.training.progress import Progress
events = {events!r}
with Progress() as progress:
    for event in events:
        progress(event)
    print("answer")
    progress.bar.refresh()
    raise {error}
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "ValueError"])
def test_the_bar_lets_go_of_the_terminal_on_an_error(error: str) -> None:
    code = LIVE.format(events=[START, step(50), evaluate(50, 1.25)], error=error)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the terminal's other side is closed
        pass
    out = child.communicate(timeout=30)[0]
    os.close(ours)
    text = shown.decode()
    assert out == b"answer\n"  # what is printed while the bar is live stays on standard output
    assert "step 50/100" in text
    assert "loss 1.00  2,000 tok/s  25 s left  1.50 GiB  validation 1.25" in text
    assert (
        text.index("\x1b[?25l") < text.index("\x1b[?25h") < text.index("Traceback")
    )  # the cursor is back, the bar has ended

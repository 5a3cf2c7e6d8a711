"""The verbs that use a reward, `score` and `sample`. Nothing heavy is imported until one runs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from tunesmith.cli_options import MODEL, NEW_TOKENS, QUANTIZE, REPETITION, REWARD, SEED, STOP, TEMPERATURE, TOP_K, TOP_P
from tunesmith.errors import InputError
from tunesmith.terminal import JSON, print_result

PAUSE = 20.0  # seconds between two lines where there is no terminal


def score(
    reward_model: Annotated[
        str, typer.Argument(metavar="REWARD_MODEL", help="A reward model's folder, a hub id or a run's folder.")
    ],
    data: Annotated[
        list[str],
        typer.Option(help="Preferences, verdicts, chats, in any format training reads (may be repeated).", metavar="D"),
    ],
    output: Annotated[
        str | None, typer.Option(help="Write the rows with their scores to this file (.jsonl).", metavar="FILE")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score the first N rows only.", metavar="N", min=1)] = None,
    as_json: JSON = False,
) -> None:
    """Score answers with a reward model.

    Every answer of the data is scored. Preferences show how often the better answer scores higher; every set, whether
    the reward follows length.
    """
    from tunesmith.rewarding.scoring import score as verb

    with progress() as told:
        result = verb(reward_model, data=data, output=output, limit=limit, told=told)
    print_result(result, as_json, _show_scored)


def sample(
    model: MODEL,
    data: Annotated[list[str], typer.Option(help="Prompts, in any format training reads.", metavar="D")],
    output: Annotated[str, typer.Option(help="Where the rows go (.jsonl).", metavar="FILE")],
    reward: REWARD = None,
    best_of: Annotated[int, typer.Option(help="Answers to each prompt.", metavar="N", min=1)] = 8,
    keep: Annotated[int, typer.Option(help="Write the K best of them, each as a row.", metavar="K", min=1)] = 1,
    pairs: Annotated[bool, typer.Option("--pairs", help="Write the best against the worst, for DPO.")] = False,
    ranked: Annotated[bool, typer.Option("--ranked", help="Write all in their order, with scores.")] = False,
    min_reward: Annotated[float | None, typer.Option(help="The least reward of a good answer.", metavar="R")] = None,
    min_margin: Annotated[float, typer.Option(help="The least lead of the best over the worst.", metavar="R")] = 0.0,
    limit: Annotated[int | None, typer.Option(help="Take the first N rows only.", metavar="N", min=1)] = None,
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter's folder on top of MODEL.", metavar="DIR")] = None,
    quantize: QUANTIZE = None,
    max_new_tokens: NEW_TOKENS = None,
    temperature: TEMPERATURE = None,
    top_p: TOP_P = 1.0,
    top_k: TOP_K = 0,
    repetition_penalty: REPETITION = 1.0,
    stop: STOP = None,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Sample answers and keep the best to train on.

    Rejection sampling: of --best-of answers to each prompt the best by --reward become rows, which `tunesmith train`
    takes as they are. Interrupted, the same call goes on.
    """
    from tunesmith.rewarding.rejection import sample as verb

    if pairs and ranked:
        raise InputError("--pairs and --ranked are two ways to write the answers; give one of them.")
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    with progress() as told:
        result = verb(
            model,
            data=data,
            reward=reward,
            output=output,
            best_of=best_of,
            form="pairs" if pairs else "ranked" if ranked else "chat",
            keep=keep,
            min_reward=min_reward,
            min_margin=min_margin,
            limit=limit,
            adapter=adapter,
            quantize=quantize,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            stop=stop or (),
            seed=seed,
            told=told,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
    how = " --objective dpo" if pairs or ranked else ""
    onto = "" if adapter is None else f" --set adapter.from={adapter}"
    print_result(result, as_json, lambda r: _show_sampled(r, f"train --model {model}{how}{onto} --data {output}"))


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Within it what is told stands on standard error: on a terminal in one line, elsewhere a line now and then."""
    from rich.console import Console
    from rich.markup import escape

    console, last = Console(stderr=True), time.monotonic()

    def line(said: str) -> None:
        nonlocal last
        if time.monotonic() - last > PAUSE:
            last = time.monotonic()
            print(said, file=sys.stderr)

    if not console.is_terminal:
        yield line
        return
    with console.status("") as status:
        yield lambda said: status.update(escape(said))


def show_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    """Print metrics with their intervals, one a line."""
    width = max((len(name) for name in metrics), default=0)
    for name, m in metrics.items():
        print(f"{name:<{width}}  {m['value']:>9.4g}   ({m['low']:.4g} to {m['high']:.4g}, n = {m['n']})")


def _show_scored(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    show_metrics({name: metric for name, metric in metrics.items() if "/" not in name})
    parts = [name.split("/", 1) for name in metrics if "/" in name]
    columns, lines = list(dict.fromkeys(name for name, _ in parts)), list(dict.fromkeys(of for _, of in parts))
    width = max((len(of) for of in lines), default=0)
    if lines:
        print(" ".join([f"\n{'':<{width}}", *(f"{name:>19}" for name in columns)]))
    for of in lines:
        found = [metrics.get(f"{name}/{of}") for name in columns]
        print(" ".join([f"{of:<{width}}", *(f"{m['value']:>19.4g}" if m else " " * 19 for m in found)]))
    if result["output"]:
        print(f"\n{result['rows']:,} rows with scores are in {result['output']}")


def _show_sampled(result: dict[str, Any], next_: str) -> None:
    show_metrics(result["metrics"])
    for why, count in result["left_out"].items():
        print(f"left out: {count:,} {why}")
    print(f"{result['rows']:,} rows of {result['prompts']:,} prompts are in {result['output']}")
    print(f"next    tunesmith {next_}")

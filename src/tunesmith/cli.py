"""The command line: verbs over the Python API. Nothing heavy is imported until a verb runs."""

import contextlib
import errno
import os
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli_data import data_app
from tunesmith.cli_merge import merge
from tunesmith.cli_options import (
    ADAPTER,
    ADAPTERS,
    MODEL,
    NEW_TOKENS,
    QUANTIZE,
    REPETITION,
    REWARD,
    SEED,
    STOP,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)
from tunesmith.cli_score import progress, sample, score, show_metrics
from tunesmith.errors import GuardStop, InputError, Interrupted, ProcessLost, SaidElsewhere
from tunesmith.terminal import JSON, console, print_result
from tunesmith.training.parallel import speaks

OUTSIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)  # a path's fault
app = typer.Typer(
    name="tunesmith",
    help="Fine-tune a language model, from raw data to a measured result.\n\n"
    "Start with: tunesmith demo. Then: tunesmith train --model MODEL --data FILE. "
    "MODEL is `starter` (built in), a local folder, a hub id or a run's folder.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts a third sooner
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Where the demo's run goes.", metavar="DIR")] = "demo",
    as_json: JSON = False,
) -> None:
    """Fine-tune the built-in model end to end.

    It makes the data, trains, shows answers before and after, and leaves a report and a model to chat with.
    """
    from tunesmith.demo import run_demo, show_demo

    with _progress() as progress:
        result = run_demo(output, (progress,))
    print_result(result, as_json, lambda r: show_demo(r, console()))


@app.command()
def train(
    run_file: Annotated[
        str | None, typer.Argument(metavar="RUN.yaml", help="A run file; flags are laid over it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What to fine-tune (default: starter).", metavar="MODEL")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Training data: file, folder or hub id (may be repeated).", metavar="D")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="sft (default), pretrain, dpo, kto, reward, …", metavar="NAME")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="lora, dora, ia3, prompt, freeze, full, … (default: by the model's size).", metavar="NAME"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="The run's folder (default: runs/…).", metavar="DIR")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of the run file, as train.epochs=2.", metavar="SECTION.KEY=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in its folder from its newest whole checkpoint.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Fine-tune a model.

    Two inputs suffice, --model and --data; what is inferred is printed with its reason.
    """
    from tunesmith.training.api import train as verb

    with _progress() as progress:
        result = verb(
            run_file,
            model=model,
            data=data or None,
            objective=objective,
            adapter=adapter,
            output=output,
            settings=settings or (),
            resume=resume,
            listeners=(progress,),
        )
    print_result(result, as_json, _show_trained)


@app.command()
def evaluate(
    model: MODEL,
    data: Annotated[list[str], typer.Option(help="Held-out data (may be repeated).", metavar="D")],
    adapter: ADAPTER = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="perplexity, exact_match, rule, … (default: what suits the data).", metavar="NAME"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Measure the first N rows only.", metavar="N", min=1)] = None,
    quantize: QUANTIZE = None,
    max_new_tokens: NEW_TOKENS = None,
    as_json: JSON = False,
) -> None:
    """Measure a model on held-out data.

    Each metric comes with its 95% interval, and per category where rows carry one.
    """
    from tunesmith.evaluation.evaluator import evaluate as verb

    if len(adapter or ()) > 1:  # typer would take the last one in silence
        raise InputError(f"evaluate measures one adapter at a time, found {len(adapter or ())}; run it once for each.")
    result = verb(
        model,
        adapter=adapter[0] if adapter else None,
        data=data,
        metrics=metric or None,
        limit=limit,
        quantize=quantize,
        max_new_tokens=max_new_tokens,
    )
    print_result(result, as_json, lambda r: show_metrics(r["metrics"]))


@app.command()
def generate(
    model: MODEL,
    adapter: ADAPTERS = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt.", metavar="TEXT")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Prompts from a file, in any format training reads.", metavar="D")
    ] = None,
    quantize: QUANTIZE = None,
    max_new_tokens: NEW_TOKENS = None,
    temperature: TEMPERATURE = None,
    top_p: TOP_P = 1.0,
    top_k: TOP_K = 0,
    repetition_penalty: REPETITION = 1.0,
    stop: STOP = None,
    seed: SEED = 0,
    best_of: Annotated[
        int | None, typer.Option(help="Sample N answers and give the one with the best reward.", metavar="N", min=1)
    ] = None,
    reward: REWARD = None,
    as_json: JSON = False,
) -> None:
    """Answer a prompt, or every prompt of a file.

    The model's own chat template is used, as in training. Of several adapters each answers; --adapter none is MODEL
    alone.
    """
    from tunesmith.model.inference import generate_text

    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens} if max_new_tokens is not None else {}
    with progress() as told:
        result = generate_text(
            model,
            adapter=adapter or None,
            quantize=quantize,
            prompt=prompt,
            data=data or None,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            stop=stop or (),
            seed=seed,
            best_of=best_of,
            reward=reward,
            told=told,
            **sampling,
        )
    print_result(result, as_json, _show_answers)


@app.command()
def chat(
    model: MODEL,
    adapter: ADAPTERS = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.", metavar="TEXT")] = None,
    quantize: QUANTIZE = None,
    max_new_tokens: NEW_TOKENS = None,
    temperature: TEMPERATURE = 0.7,
    top_p: TOP_P = 0.95,
    seed: SEED = 0,
) -> None:
    """Talk to a model in the terminal.

    Answers stream; /adapter inside switches between adapters, /help lists what else it does.
    """
    from tunesmith.chat import chat as verb

    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens} if max_new_tokens is not None else {}
    sampling["quantize"] = quantize
    verb(model, adapter=adapter or None, system=system, temperature=temperature, top_p=top_p, seed=seed, **sampling)


app.command()(merge)
app.command()(score)
app.command()(sample)


def _show_answers(result: dict[str, Any]) -> None:
    labels = [
        a.get("adapter") or (f"reward {a['score']:.4g}" if a.get("score") is not None else "")
        for a in result["answers"]
    ]
    answers = [a["answer"] for a in result["answers"]]
    print("\n\n".join(f"[{of}] {said}" if of else said for of, said in zip(labels, answers, strict=True)))


def _progress() -> Any:
    """The live display, on standard error: a --json run shows it too."""
    from tunesmith.training.progress import Progress

    return Progress()


def _show_trained(result: dict[str, Any]) -> None:
    show_metrics(result["metrics"])
    from tunesmith.model.reward_config import scores

    run = result["run"]
    next_ = f"score {run} --data rows.jsonl" if scores(Path(result["result"])) else f"chat {run}"
    print(f"result  {result['result']}\nreport  {run}/report.html\nnext    tunesmith {next_}")


def main() -> None:
    """Run the command line; every ending is an exit code of the contract (see docs/guide.md)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' words to their own callers, not to people
    warnings.filterwarnings("ignore", module=r"(peft|torchao|bitsandbytes)\.")
    terminated: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        """Outside the steps, which a run's loop ends in its own way, SIGTERM ends what is under way as Ctrl-C does."""
        terminated.append(number)
        raise KeyboardInterrupt("interrupted by SIGTERM")

    with contextlib.suppress(ValueError):  # not the main thread: a program that embeds this handles its own signals
        signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(prog_name="tunesmith", standalone_mode=False)
    except InputError as e:
        code = 2 if isinstance(e, SaidElsewhere) else _fail(str(e), 2)
    except ProcessLost as e:
        code = _fail(str(e), 1, common=True)
    except Interrupted as e:
        sys.exit(_fail(f"{e}, continue with --resume", 128 + e.number, common=True))
    except GuardStop as e:
        code = _fail(str(e), 3, common=True)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as e:
        code = _unexpected(e)
    if code == 130:
        said = "interrupted by SIGTERM" if terminated else "interrupted"
        code = _fail(said, 143 if terminated else 130, common=True)
    sys.exit(code)


def _unexpected(error: Exception) -> int:
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        return 2  # the help is on the screen
    if hasattr(error, "format_message"):  # typer's usage errors (its click is its own or the public one, by version)
        return _fail(f"{error.format_message()} (tunesmith --help)", 2, common=True)
    if kind == "Abort":  # some versions of typer make that of a KeyboardInterrupt, others return 130
        return 130
    if isinstance(error, OSError) and error.errno in OUTSIDE and error.filename:
        reason = str(error.strerror).lower()
        return _fail(f"{error.filename} cannot be used: {reason}; choose another path, or mend its permissions.", 2)
    path = getattr(error, "traceback_file", None)  # a run keeps its own
    if path is None:
        with tempfile.NamedTemporaryFile("w", prefix="tunesmith-", suffix=".txt", delete=False) as f:
            f.write("".join(traceback.format_exception(error)))
        path = f.name
    first = (str(error).splitlines() or [""])[0]
    return _fail(f"a defect of tunesmith: {kind}: {first[:200]} (traceback in {path})", 1)


def _fail(message: str, code: int, common: bool = False) -> int:
    """Tell people what ended the verb; of processes launched together, what is common to all is told by the first alone."""
    # one line, whatever a row's text or a library's word in it holds; control codes never reach the terminal
    message = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(message.splitlines()))
    if speaks():
        print(f"tunesmith: {message}", file=sys.stderr)
    elif not common:
        print(f"tunesmith, process {os.environ['RANK']}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()

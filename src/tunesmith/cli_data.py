"""The verbs under `tunesmith data`. Nothing heavy is imported until one runs."""

from typing import Annotated

import typer

from tunesmith.errors import InputError
from tunesmith.terminal import JSON, console, print_result

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data before training on it.")


@data_app.command("inspect")
def data_inspect(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Files, folders, patterns or hub ids.")],
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this model's tokenizer (default: the starter's).", metavar="M")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="The limit that answers must keep (default: M's context).", metavar="N", min=2)
    ] = None,
    csv: Annotated[str | None, typer.Option("--csv", help="Write the problems to this file.", metavar="FILE")] = None,
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="Count no tokens, which is quicker.")] = False,
    as_json: JSON = False,
) -> None:
    """Say what a data set is, and what is wrong with it.

    Format, counts, token lengths, and problems with their row numbers (from 1), each with what to do about it.
    """
    from rich.console import Console
    from rich.markup import escape

    from tunesmith.data.checks.tokens import FEW, SAMPLE
    from tunesmith.data.inspect import inspect, refuse_unreadable
    from tunesmith.data.inspect_print import print_inspection
    from tunesmith.data.reports import write_problems

    named = model is not None or max_length is not None
    tokenizer = None if no_tokens else model or "starter"
    with Console(stderr=True).status("") as status:  # nothing is said where there is no terminal
        rows = SAMPLE if named else FEW
        report = inspect(list(source), tokenizer, max_length, rows, named, lambda done: status.update(escape(done)))
    if csv:
        write_problems(csv, report)
    print_result(report, as_json, lambda r: print_inspection(r, console()))
    refuse_unreadable(report)


@data_app.command("show")
def data_show(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, folder or hub id.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer and template to use.")] = "starter",
    n: Annotated[int, typer.Option("-n", help="How many rows.", min=1)] = 3,
    row: Annotated[int, typer.Option(help="The first row to show.", min=1)] = 1,
    max_length: Annotated[int | None, typer.Option(help="Cut rows here; default: as a run would.", min=2)] = None,
    html: Annotated[str | None, typer.Option(help="Write a page instead.", metavar="FILE")] = None,
) -> None:
    """Show rows as the model will see them.

    Every token in colour: scored or not, and why; what is cut; which rows run together.
    """
    from tunesmith.data.show import show

    show(source, model, n, console(), row, max_length, html)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Files, folders, hub ids; one RUN.yaml; or a recipe: card.json, recipe.yaml."
        ),
    ],
    output: Annotated[str, typer.Option(help="Where the prepared set goes.", metavar="DIR")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A step, or its option: language.keep=[en], quality=false.", metavar="STEP.OPTION=VALUE"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Count lengths in this model's tokens too.", metavar="M")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the splits, and whatever a step draws.", min=0)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a set that another recipe made in DIR.")] = False,
    as_json: JSON = False,
) -> None:
    """Clean, deduplicate, redact and split a data set.

    A data card shows what every step did and every row's fate. Interrupted, the same call goes on. Of a recipe the same
    set is made again, from the same sources.
    """
    from tunesmith.data import prepare, prepare_print, recipe

    told = (prepare_print.told(as_json),)
    again = recipe.of_recipe(source)
    if again is not None and (settings or model or seed is not None):
        raise InputError(f"{source[0]} is a recipe, which is made again as it is; leave --set, --model and --seed out.")
    with prepare_print.goes_on():
        if again is None:
            entries, section, own = recipe.asked(source, settings or ())
            report = prepare.run(entries, section, output, own if seed is None else seed, told, model, force)
        else:
            report = prepare.rebuild(again, output, told, force)
    print_result(report, as_json, prepare_print.show_prepared)


@data_app.command("why")
def data_why(
    card: Annotated[str, typer.Argument(metavar="CARD", help="A prepared set's folder, or its card.json.")],
    row: Annotated[
        str, typer.Argument(metavar="ROW", help="An input row: 12, or rows.jsonl:12. Or a line of the set.")
    ],
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring a dropped row back: make the set again with it.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Tell what became of an input row, and why.

    Kept and where, changed, dropped by which step for what reason, its nearest duplicate.
    """
    from tunesmith.data import prepare_print, why

    told = (prepare_print.told(True),)
    answer = why.restore(card, row, told) if restore else why.why(card, row)
    print_result(answer, as_json, lambda a: prepare_print.show_why(a, card))

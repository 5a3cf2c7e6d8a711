"""The verb `merge`. Nothing heavy is imported until it runs."""

from typing import Annotated

import typer

from tunesmith.errors import InputError
from tunesmith.terminal import JSON, console, print_result


def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help="Adapters of one base: folders, runs, or NAME=DIR.")
    ],
    output: Annotated[str, typer.Option(help="Where the merged adapter, or model, goes.", metavar="DIR")],
    weights: Annotated[
        str | None, typer.Option(help="One per adapter (default: 1/N each; 1 each for ties).", metavar="W,W,...")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="cat: the exact weighted sum (default); svd: its best part of a rank; linear, ties, dare_linear, dare_ties, "
            "magnitude_prune: on A and B apart, as PEFT; each with _svd: on whole changes.",
            metavar="NAME",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of svd and its like (default: the parts').", metavar="R")] = None,
    density: Annotated[
        float | None, typer.Option(help="Share that ties, dare and magnitude_prune keep (default: 0.5).", metavar="D")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draws what dare keeps (default: 0).", metavar="N", min=0)] = None,
    into_base: Annotated[
        bool, typer.Option("--into-base", help="Put one adapter into its base, as a whole model.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The base, where the adapters name another place of it.", metavar="MODEL")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Measure base, parts and merge on it (may be repeated).", metavar="D")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Besides loss and perplexity (may be repeated).", metavar="NAME")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Measure the first N rows only.", metavar="N", min=1)] = None,
    as_json: JSON = False,
) -> None:
    """Merge adapters into one, or one into its base.

    The result is a plain PEFT folder; merge.json in it has the recipe and how the merge compares with its parts.
    """
    from tunesmith.merge_adapters import merge as verb
    from tunesmith.merge_adapters import show

    result = verb(
        adapters,
        output=output,
        weights=_numbers(weights),
        method=method,
        rank=rank,
        density=density,
        seed=seed,
        model=model,
        data=data or None,
        metrics=metric or None,
        limit=limit,
        into_base=into_base,
    )
    print_result(result, as_json, lambda r: show(r, console()))


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as e:
        raise InputError(f'--weights takes numbers with commas between them, as 0.7,0.3; found "{text}".') from e

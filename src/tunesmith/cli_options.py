"""Options that several verbs share."""

from typing import Annotated

import typer

MODEL = Annotated[str, typer.Argument(metavar="MODEL", help="starter, a local folder, a hub id or a run's folder.")]
ADAPTER = Annotated[list[str] | None, typer.Option(help="A PEFT adapter's folder on top of MODEL.", metavar="DIR")]
ADAPTERS = Annotated[
    list[str] | None,
    typer.Option(help="A PEFT adapter's folder on top of MODEL, or NAME=DIR (may be repeated).", metavar="DIR"),
]
QUANTIZE = Annotated[
    str | None,
    typer.Option(
        help="How the base is held: nf4, fp4, int8, torchao-int8 or none (default: as its adapter was trained).",
        metavar="NAME",
    ),
]
NEW_TOKENS = Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)]
TEMPERATURE = Annotated[float | None, typer.Option(help="0 takes the likeliest token; 0.7 is lively.", min=0)]
TOP_P = Annotated[
    float, typer.Option(help="Sample among the likeliest tokens that hold this probability.", min=0, max=1)
]
TOP_K = Annotated[int, typer.Option(help="Sample among the K likeliest tokens (0: all).", min=0)]
REPETITION = Annotated[float, typer.Option(help="Above 1 makes tokens already seen less likely.", min=0.01)]
STOP = Annotated[list[str] | None, typer.Option(help="End the answer at this text (may be repeated).", metavar="TEXT")]
SEED = Annotated[int, typer.Option(help="Makes sampling repeatable.", min=0)]
REWARD = Annotated[
    str | None,
    typer.Option(
        help="What scores answers: a reward model's folder, or `rule`: by their rows' rules (check) or references.",
        metavar="REWARD",
    ),
]

"""What the verbs share: the console, and a result printed for people or as JSON."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tunesmith.run import finite
from tunesmith.training.parallel import speaks

JSON = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; all else on standard error.")]


def console() -> Any:
    from rich.console import Console

    return Console()


def print_result(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if not speaks():
        return
    for notice in result.pop("notices", []):
        print(f"Note: {notice}", file=sys.stderr)
    if as_json:
        print(json.dumps(finite(result), ensure_ascii=False))
    else:
        show(result)

"""What `tunesmith data prepare` and `why` print."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

Event = dict[str, Any]
_OBJECTIVES = {"preference": " --objective dpo", "verdict": " --objective kto"}


def told(as_json: bool) -> Callable[[Event], None]:
    """Return a listener that prints a line for each step as it ends: on standard error where standard output is JSON's."""
    file = sys.stderr if as_json else sys.stdout

    def listen(event: Event) -> None:
        if event["event"] == "continued":
            print(f"going on after the step {event['step']}", file=file)
        if event["event"] == "read":
            for info in event["files"]:
                rows = f"{info['rows']:,} row{'s' * (info['rows'] != 1)} of the format {info['format']} ({info['why']})"
                broken = f", {info['broken']:,} of them broken" if info["broken"] else ""
                print(f"read {info['path']}: {rows}{broken}", file=file)
        if event["event"] == "step":
            counts = ", ".join(
                f"{event[k]:,} {k}" for k in ("kept", "dropped", "changed", "added", "spared") if event[k]
            )
            said = event["facts"].get("summary", "")
            print(f"{event['name']:<17} {counts} ({event['seconds']:.1f} s). {said}", file=file, flush=True)

    return listen


@contextlib.contextmanager
def goes_on() -> Iterator[None]:
    """Say, where somebody interrupts what is under way, that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nThe same command goes on after the last step that was finished.", file=sys.stderr)
        raise


def show_prepared(report: dict[str, Any]) -> None:
    """Print what a set has become, and what next."""
    rows, output = report["rows"], report["output"]
    named = shlex.quote(output)
    if report["reused"]:
        print(f"{output} is this set already; nothing was done.")
    lost = f"{rows['broken']:,} broken, " * bool(rows["broken"]) + f"{rows['dropped']:,} dropped"
    more = "".join(f", {rows[k]:,} {k}" for k in ("changed", "added", "spared") if rows[k])
    made = f", {rows['records']:,} records in them" * (rows["records"] != rows["read"] - rows["broken"])
    print(f"\n{rows['kept']:,} rows of {rows['read']:,} read{made} ({lost}{more}), {report['seconds']:.1f} s")
    width = max(len(file["path"]) for file in report["files"])
    for file in report["files"]:
        print(f"  {output}/{file['path']:<{width}}  {file['rows']:>9,} row{'s' * (file['rows'] != 1)}")
    folder, objective = _trained(report)
    print(f"card     {output}/card.html\nnext     tunesmith train --data {shlex.quote(folder)}{objective}")
    if rows["dropped"] or rows["broken"]:
        print(f"         tunesmith data why {named} ROW      (what became of a row, and why)")


def _trained(report: dict[str, Any]) -> tuple[str, str]:
    """Return what to train on: the folder, or the first fold or kind where there are several; and an objective for its kind."""
    first = next((f for f in report["files"] if f["split"] == "train"), report["files"][0])
    folder = first["path"].rpartition("/")[0]
    return f"{report['output']}/{folder}".rstrip("/"), _OBJECTIVES.get(first["kind"], "")


def show_why(answer: dict[str, Any], card: str) -> None:
    """Print a row's fate."""
    if answer.get("restored") is False:
        print("Nothing to bring back: no step has dropped this row.")
    print(_printable("\n".join(answer["says"])))
    if answer["source"] is not None:
        print(f"\nIn its file it says:\n{_indented(answer['source'])}")
    for line in answer["records"]:
        if line["text"] is not None and line["text"] != answer["source"]:
            print(f"\nIn the set ({line['output']}, line {line['line']}) it says:\n{_indented(line['text'])}")
    if any(line["fate"] == "dropped" and line["id"] is not None for line in answer["records"]):
        row = shlex.quote(f"{answer['file']}:{answer['row']}")
        print(f"\nBring it back with: tunesmith data why {shlex.quote(card)} {row} --restore")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in _printable(text).split("\n"))


def _printable(text: str) -> str:
    """Return the text without control codes, which a row may hold and no terminal should get."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)

"""The rest of the report: settings and their reasons, notices, the machine, the commands that use the result."""

import shlex
from html import escape
from pathlib import Path

from tunesmith.evaluation.report_format import count, memory, setting
from tunesmith.evaluation.report_run import RunRecord, number
from tunesmith.masking import clean, flatten, masked


def settings_section(run: RunRecord) -> str:
    """Return the inferred settings with their reasons, then all others."""
    settings = {key: setting(value) for key, value in flatten(run.config).items()}
    reasons = [
        (key, _shown(key, event.get("value")), str(event.get("reason", ""))) for key, event in run.inferred.items()
    ]
    settings = {
        key: value
        for key, value in settings.items()
        if not any(key == inferred or key.startswith(f"{inferred}.") for inferred in run.inferred)
    }
    html = ""
    if reasons:
        html = (
            '<table class="settings"><thead><tr><th scope="col">setting</th><th scope="col">inferred</th>'
            f'<th scope="col">because</th></tr></thead><tbody>{"".join(map(_setting, reasons))}</tbody></table>'
        )
    if settings:
        rows = "".join(map(_setting, settings.items()))
        html += (
            f"<details{'' if reasons else ' open'}><summary>{len(settings)} settings that were given or are plain "
            f'defaults</summary><table class="settings"><tbody>{rows}</tbody></table></details>'
        )
    return html


def _shown(key: str, value: object) -> str:
    return setting(masked(key, value))


def _setting(cells: tuple[str, ...]) -> str:
    key, value, *reason = map(escape, cells)
    why = "".join(f"<td>{one}</td>" for one in reason)
    return f'<tr><th scope="row"><code>{key}</code></th><td class="value">{value}</td>{why}</tr>'


def notices_section(run: RunRecord) -> str:
    """Return what the run had to say aside, as a list."""
    lines = list(run.notices)
    bad = [step for step, event in sorted(run.steps.items()) if "loss" in event and number(event["loss"]) is None]
    if bad:
        steps = "One step" if len(bad) == 1 else f"{count(len(bad))} steps"
        lines.append(f"{steps} had no finite loss (the first: step {count(bad[0])}); the curve leaves that out.")
    return "<ul>" + "".join(f"<li>{escape(clean(line))}</li>" for line in lines) + "</ul>" if lines else ""


def use_section(run: RunRecord) -> str:
    """Return the commands that use the result, or the one that goes on with the run."""
    folder = shlex.quote(_relative(run.folder))
    commands = []
    if run.state not in ("done", ""):
        commands.append(
            (
                f"tunesmith train {shlex.quote(_relative(run.folder / 'run.yaml'))} --resume",
                "go on from the last checkpoint",
            )
        )
    if (run.folder / "result").is_dir() and "reward" in run.results:  # a reward model, which does not talk
        commands.append((f"tunesmith score {folder} --data rows.jsonl", "score answers"))
        prompt = shlex.quote(_example_prompt(run))
        commands.append(
            (f"tunesmith generate MODEL --prompt {prompt} --best-of 8 --reward {folder}", "the best of eight answers")
        )
    elif (run.folder / "result").is_dir():
        commands.append((f"tunesmith chat {folder}", "talk to it"))
        commands.append((f"tunesmith generate {folder} --prompt {shlex.quote(_example_prompt(run))}", "one answer"))
    rows = "".join(f"<dt>{escape(why)}</dt><dd><code>{escape(command)}</code></dd>" for command, why in commands)
    return f'<dl class="commands">{rows}</dl>' if rows else ""


def _example_prompt(run: RunRecord) -> str:
    """Return a short prompt of a sample, or a greeting."""
    samples = run.results.get("samples")
    for sample in samples if isinstance(samples, list) else []:
        messages = sample.get("prompt") if isinstance(sample, dict) else None
        last = messages[-1] if isinstance(messages, list) and messages else None
        content = last.get("content") if isinstance(last, dict) and len(messages or []) == 1 else None
        if isinstance(content, str) and 0 < len(content) <= 80 and content.isprintable():
            return content
    return "Hello"


def environment_section(run: RunRecord) -> str:
    """Return the machine and the versions."""
    shown = {key: value for key, value in run.environment.items() if not isinstance(value, dict | list)}
    if (size := number(shown.pop("memory_bytes", None))) is not None:
        shown["memory"] = memory(size)
    rows = [(key, _shown(key, value)) for key, value in shown.items() if value is not None]
    packages = run.environment.get("packages")
    if isinstance(packages, dict):
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    if isinstance(git := run.environment.get("git"), dict):
        rows.append(("git", ", ".join(f"{key} {value}" for key, value in git.items())))
    cells = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows)
    return f'<dl class="environment">{cells}</dl>' if cells else ""


def _relative(path: Path) -> str:
    """Return the path as typed from here where it lies below, else whole."""
    here = Path.cwd()
    whole = path.resolve()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)

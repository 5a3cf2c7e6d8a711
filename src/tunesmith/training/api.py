"""The verb `train`: check everything, infer what is open, train, measure before and after, write the result and the report."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import config as configuration
from tunesmith import run, run_file
from tunesmith.config import RunConfig
from tunesmith.errors import InputError
from tunesmith.model.loading import check_weights, resolve
from tunesmith.training import parallel
from tunesmith.training import resolve as resolving
from tunesmith.training.parallel import World
from tunesmith.training.prepare import Prepared


def train(
    config: str | dict[str, Any] | None = None,
    *,
    model: str | None = None,
    data: str | Sequence[str | dict[str, Any]] | None = None,
    objective: str | None = None,
    adapter: str | None = None,
    output: str | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    listeners: Sequence[run.Listener] = (),
) -> dict[str, Any]:
    """Train as a run file (path or its content) says, the other arguments laid over it; `settings` are "section.key=value".

    Returns {"run", "steps", "tokens", "scored_tokens", "seconds", "tokens_per_second" (real tokens per second of stepping, the
    first two steps left out), "train_loss", "metrics", "peak_memory_bytes", "result"}. `listeners` get every event as a dict.
    Raises InputError before weights are loaded where the input is wrong; GuardStop where the loss stops being a number.
    """
    with parallel.joined() as world:

        def begun() -> tuple[RunConfig, Path, bool]:
            given = configuration.parse(*_content(config, model, data, objective, adapter, output, settings))
            return _begun(given, config, output) if resume else (given, _new_folder(given), False)

        given, folder, done = world.first(begun)
        if done:
            return _finished(folder, listeners, world)
        world.together(lambda: _check_places(given, folder if world.rank == 0 else None))
        prepared = _prepared(given, world, listeners)
        from tunesmith.training.stages import Training

        return Training(prepared, folder, listeners, world).go(resume)


def _begun(given: RunConfig, config: str | dict[str, Any] | None, output: str | None) -> tuple[RunConfig, Path, bool]:
    """Return the run to be resumed as it was begun (`given`, where it was not), its folder, and whether it is finished."""
    folder = _folder_to_resume(config, output, given)
    if (folder / "run.yaml").is_file():
        stored = configuration.parse(run_file.load_file(str(folder)), str(folder / "run.yaml"))
        resolving.refuse_changes(given, stored, str(folder))
        given = stored
    return given, folder, run.state(folder) == "done"


def _prepared(config: RunConfig, world: World, listeners: Sequence[run.Listener]) -> Prepared:
    """Prepare in the first process, then in the others, who take over what it inferred from its machine and find its tokens cached."""
    own: list[Prepared] = []

    def say(message: str) -> None:
        for listener in listeners:
            listener({"event": "notice", "message": message})

    def first() -> RunConfig:
        own.append(Prepared(config, say))
        return own[0].config

    resolved = world.first(first)
    return world.together(lambda: own[0] if own else Prepared(resolved))


def _check_places(config: RunConfig, folder: Path | None) -> None:
    """InputError where data, model or output (None: another process's) cannot be what they are named; imports nothing heavy."""
    from tunesmith.data import files, sources

    for source in sources.parse(config.data):
        files.expand(source.path, source.split)
    start = (config.adapter or {}).get("from")
    check_weights(
        resolve(
            start if start and "model" not in config.model_fields_set and Path(start).is_dir() else config.model.path
        )
    )
    if folder is None:
        return
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"the output folder {folder} cannot be made: {existing} is a file.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".tunesmith-", dir=existing))  # permissions do not tell of every file system
    except OSError as e:
        raise InputError(f"the output folder {folder} cannot be written in {existing}: {e.strerror}.") from e


def _content(
    config: str | dict[str, Any] | None,
    model: str | None,
    data: str | Sequence[str | dict[str, Any]] | None,
    objective: str | None,
    adapter: str | None,
    output: str | None,
    settings: Sequence[str],
) -> tuple[dict[str, Any], str]:
    content = run_file.load_file(config) if isinstance(config, str) else dict(config or {})
    for key, value in (("model", model), ("objective", objective), ("adapter", adapter), ("output", output)):
        if value is not None:
            content[key] = value
    if data is not None:
        content["data"] = [data] if isinstance(data, str) else list(data)
    for setting in settings:
        run_file.assign(content, setting)
    return content, config if isinstance(config, str) else "the run"


def _new_folder(config: RunConfig) -> Path:
    if not config.data:
        raise InputError("there is no data to train on: give --data FILE (or a data section in the run file).")
    if config.output is not None:
        folder = Path(config.output)
        if folder.is_file():
            raise InputError(f"the output {folder} is a file; a run needs a folder of its own.")
        run.refuse_used(folder)
        return folder
    stem = Path(str(config.data[0].get("path", "data"))).stem
    name = re.sub(r"[^\w.-]+", "-", f"{stem}-{config.objective['name']}")
    folder, n = Path("runs") / name, 1
    while folder.exists():
        n += 1
        folder = Path("runs") / f"{name}-{n}"
    return folder


def _folder_to_resume(config: str | dict[str, Any] | None, output: str | None, given: RunConfig) -> Path:
    if isinstance(config, str) and output is None:
        path = Path(config)
        folder = path if path.is_dir() else path.parent
        if (folder / "state.json").is_file() and (folder / "run.yaml").samefile(
            folder / path.name if path.is_file() else folder / "run.yaml"
        ):
            return folder  # a run's own file, wherever the run was moved
    if given.output is None:
        raise InputError("--resume needs to know the run: give its --output, or RUN/run.yaml.")
    folder = Path(given.output)
    if run.used(folder) and not (folder / "run.yaml").is_file():
        raise InputError(f"the output folder {folder} holds no run to resume, and it is not empty.")
    if not given.data and not (folder / "run.yaml").is_file():
        raise InputError(
            f"there is no run {folder} to resume, and no data to begin it with: name the run's folder, or give --data."
        )
    return folder


def _finished(folder: Path, listeners: Sequence[run.Listener], world: World) -> dict[str, Any]:
    def read() -> Any:
        try:
            return json.loads((folder / "results.json").read_text())["train"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(f"{folder} is finished, but its results.json cannot be read; begin a new run.") from e

    result: dict[str, Any] = world.first(read)
    for listener in listeners if world.rank == 0 else ():
        listener({"event": "notice", "message": f"{folder} is finished: nothing is left to resume"})
    return result

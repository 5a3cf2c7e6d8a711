"""Weights & Biases, online or (WANDB_MODE=offline) in files under the run's folder for a later `wandb sync`."""

import os
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import InputError
from tunesmith.tracking._feed import DRAIN, Begin, Point, require


def check() -> None:
    """InputError where the library is absent, or it would ask for a key in the middle of the run."""
    require("wandb", "wandb")
    import wandb

    online = wandb.setup().settings.mode == "online" and wandb.run is None
    if online and not wandb.login(prompt=False, verify=False):
        raise InputError("wandb has no API key: run `wandb login`, or set WANDB_MODE=offline and sync later.")


def start(
    begin: Begin,
    *,
    project: str | None = None,
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
) -> "_Run":
    """Return a sink for a W&B run, begun or continued. Project: WANDB_PROJECT or "tunesmith" where none is given.

    Only what we send is sent: no console, code, packages, command line, git or machine.
    """
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=DRAIN,
        finish_timeout=DRAIN,
    )
    opened = wandb.init(
        id=begin.id,
        resume="allow",
        name=begin.name,
        project=project or os.environ.get("WANDB_PROJECT") or "tunesmith",
        entity=entity,
        group=group,
        tags=tags,
        config=begin.config,
        allow_val_change=True,  # a continued run says its configuration again
        dir=os.environ.get("WANDB_DIR") or str(begin.folder),
        reinit="create_new",  # a run that the calling program has open stays open
        settings=settings,
    )
    return _Run(opened)


class _Run:
    def __init__(self, opened: Any) -> None:
        self.run, self.id = opened, str(opened.id)
        self.where = (
            f"wandb sync {os.path.dirname(opened.dir)}"
            if opened.offline
            else str(opened.url or "nowhere, WANDB_MODE says so")
        )
        opened.define_metric("*", step_metric="step")  # not wandb's own step, which never goes back to a checkpoint's

    def send(self, points: Sequence[Point]) -> None:
        for p in points:
            self.run.log({"step": p.step, **p.values})

    def end(self, state: str) -> None:
        self.run.summary["state"] = state
        self.run.finish(exit_code=0 if state == "done" else 1)

"""MLflow: the server MLFLOW_TRACKING_URI names, or MLflow's own default, a database in the working folder."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from tunesmith.tracking._feed import Begin, Point, require

BATCH = 1000  # metrics and, a tenth of it, params that one request may hold
STATUS = {"done": "FINISHED", "interrupted": "KILLED"}


def check() -> None:
    """InputError where the library is absent, or what its local database needs."""
    require("mlflow", "mlflow")
    if os.environ.get("MLFLOW_TRACKING_URI", "sqlite").startswith("sqlite"):
        require("mlflow", "sqlalchemy", "alembic")


def start(begin: Begin, *, experiment: str | None = None) -> "_Run":
    """Return a sink for an MLflow run, begun or continued. Experiment: MLFLOW_EXPERIMENT_NAME or "tunesmith"."""
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database tells of its tables
    client = MlflowClient()
    name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "tunesmith"
    if begin.fresh:
        found = client.get_experiment_by_name(name)
        place = found.experiment_id if found else client.create_experiment(name)
        run = client.create_run(place, run_name=begin.name).info.run_id
    else:
        run = begin.id
        client.update_run(run, status="RUNNING")
    return _Run(client, run, begin)


class _Run:
    def __init__(self, client: Any, run: str, begin: Begin) -> None:
        from mlflow.entities import Param

        self.client, self.id = client, run
        self.where = f"mlflow ui --backend-store-uri {client.tracking_uri}"
        if client.tracking_uri.startswith("http"):
            self.where = client.tracking_uri
        known = client.get_run(run).data.params  # which never change
        params = [Param(_key(k), str(v)[:500]) for k, v in begin.config.items() if _key(k) not in known]
        for i in range(0, len(params), BATCH // 10):
            client.log_batch(run, params=params[i : i + BATCH // 10])

    def send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_key(k), v, round(p.time * 1000), p.step) for p in points for k, v in p.values.items()]
        for i in range(0, len(metrics), BATCH):
            self.client.log_batch(self.id, metrics=metrics[i : i + BATCH])

    def end(self, state: str) -> None:
        self.client.set_tag(self.id, "state", state)
        self.client.set_terminated(self.id, STATUS.get(state, "FAILED"))


def _key(name: str) -> str:
    """Return a name with the characters MLflow takes (a category of the data may have any)."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]

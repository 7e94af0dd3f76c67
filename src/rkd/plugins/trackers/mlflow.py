"""MLflow: scalars, settings, table and files in a tracking server or a database of one's own (`sqlite:///mlflow.db`).

Metrics are called `step/loss`, `epoch/val.robust`, `final/clean`. A parameter cannot change in MLflow: of a run that
goes on with other settings (`--accept-changes`) the new ones stand in config.toml among its files.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rkd.plugin import hookimpl

from ._common import check_tracker

LONGEST = 500
"""Characters of a parameter's value that every version of MLflow takes."""
AT_ONCE = 100
"""Parameters that it takes at once."""


@dataclass
class Mlflow:
    """MLflow: metrics, parameters, table, report and weights as artifacts.

    uri: the server, or a database, such as sqlite:///mlflow.db; by default what MLFLOW_TRACKING_URI says.
    experiment: where the run is listed.
    artifacts: whether the run's files are sent, too.
    every: steps between two points of a training; 0: points of epochs alone.
    """

    uri: str | None = None
    experiment: str = "rkd"
    artifacts: bool = True
    every: int = 50

    _client: Any = field(default=None, init=False, repr=False)
    _id: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        check_tracker("mlflow", "mlflow", self.every)

    def start(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> str:
        # Unless told otherwise it asks a server that is away seven times, with two minutes each for an answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(self.uri)
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return known
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        given = [Param(key, str(value)[:LONGEST]) for key, value in settings.items()]
        for start in range(0, len(given), AT_ONCE):
            self._client.log_batch(self._id, params=given[start : start + AT_ONCE])
        return self._id

    def log_scalars(self, axis: str, number: int, step: int, values: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [Metric(f"{axis}/{name}", value, now, number) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=points)

    def log_table(self, name: str, rows: Sequence[Mapping[str, str | float | None]]) -> None:
        self._client.log_table(self._id, {key: [row.get(key) for row in rows] for key in rows[0]}, f"{name}.json")

    def log_artifacts(self, files: Sequence[Path]) -> None:
        if self.artifacts:
            for file in files:
                self._client.log_artifact(self._id, str(file))

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._id, {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))


@hookimpl
def rkd_trackers():
    return {"mlflow": Mlflow}

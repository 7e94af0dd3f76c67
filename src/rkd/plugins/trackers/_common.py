"""What trackers share, and the calls that W&B and Trackio have in common. Not a plugin.

A point is called `step/loss`, `epoch/val.robust` or `final/clean`. It stands at the step of the optimiser, so that a
run that goes on never goes back, and an epoch's tells its epoch beside.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rkd.plugin import RkdError


def check_tracker(name: str, package: str, every: int) -> None:
    """Raise for a tracker that cannot be: said when a run's settings are read, not when it begins to train."""
    if every < 0:
        raise ValueError(f"every must not be negative, got {every}")
    if find_spec(package) is None:
        raise RkdError(f"{name} needs the package {package}: pip install 'rkd-toolkit[{name}]'")


def log_scalars(run: Any, axis: str, number: int, step: int, values: Mapping[str, float]) -> None:
    place = {"epoch": number} if axis == "epoch" else {}
    run.log({f"{axis}/{name}": value for name, value in values.items()} | place, step=step)


def log_table(package: Any, run: Any, name: str, rows: Sequence[Mapping[str, str | float | None]]) -> None:
    columns = list(rows[0])
    run.log({name: package.Table(columns=columns, data=[[row.get(key) for key in columns] for row in rows])})


def log_artifacts(package: Any, run: Any, files: Sequence[Path]) -> None:
    """All files as one artifact of type `run`."""
    artifact = package.Artifact(f"run-{run.id}", type="run")
    for file in files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)

"""Weights & Biases: online where a key is configured (`wandb login`), or `mode = "offline"`, to be sent later by
`wandb sync RUN/wandb/offline-run-*`.

A run that goes on is the same run there; offline it gets a second folder with the same run's id, and both are sent.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rkd.plugin import RkdError, hookimpl

from . import _common
from ._common import check_tracker


@dataclass
class Wandb:
    """Weights & Biases (W&B): scalars, settings, table, report and weights as an artifact.

    project, entity, group: where the run is listed; group: such as a sweep's name.
    mode: online or offline; by default what WANDB_MODE says.
    artifacts: whether the run's files are sent, too.
    every: steps between two points of a training; 0: points of epochs alone.
    """

    project: str = "rkd"
    entity: str | None = None
    group: str | None = None
    mode: Literal["online", "offline"] | None = None
    artifacts: bool = True
    every: int = 50

    _run: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_tracker("wandb", "wandb", self.every)

    def start(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> str:
        import wandb

        mode: Any = self.mode or os.environ.get("WANDB_MODE") or "online"
        # Without `prompt=False` it would ask for a key in the middle of the progress bars.
        if mode == "online" and not wandb.login(verify=False, prompt=False):
            raise RkdError("no key of W&B is configured: type `wandb login`, or --set trackers.wandb.mode=offline")
        self._run = wandb.init(
            project=self.project, entity=self.entity, group=self.group, name=folder.name, id=known, dir=str(folder),
            resume="allow" if known and mode == "online" else None, mode=mode, config=dict(settings),
            allow_val_change=True, settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._run.define_metric("epoch/*", step_metric="epoch")
        return str(self._run.id)

    def log_scalars(self, axis: str, number: int, step: int, values: Mapping[str, float]) -> None:
        _common.log_scalars(self._run, axis, number, step, values)

    def log_table(self, name: str, rows: Sequence[Mapping[str, str | float | None]]) -> None:
        import wandb

        _common.log_table(wandb, self._run, name, rows)

    def log_artifacts(self, files: Sequence[Path]) -> None:
        import wandb

        if self.artifacts:
            _common.log_artifacts(wandb, self._run, files)

    def finish(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status == "failed"))


@hookimpl
def rkd_trackers():
    return {"wandb": Wandb}

"""Trackio: W&B's calls on a local database, shown by `trackio show`.

A run is known by its name there: that of the run's folder and six digits, since another folder may have the same. It
writes twice a second: a process that is killed outright loses the points since.
"""

import contextlib
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rkd.plugin import hookimpl

from . import _common
from ._common import check_tracker


@dataclass
class Trackio:
    """Trackio: scalars, settings, table, report and weights as an artifact, in a local database.

    project: where the run is listed.
    artifacts: whether the run's files are copied, too.
    every: steps between two points of a training; 0: points of epochs alone.
    """

    project: str = "rkd"
    artifacts: bool = True
    every: int = 50

    _run: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_tracker("trackio", "trackio", self.every)

    def start(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> str:
        import trackio

        name = known or f"{folder.name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(io.StringIO()):  # it greets, and says good-bye
            self._run = trackio.init(self.project, name, config=dict(settings), resume="allow", embed=False)
        return name

    def log_scalars(self, axis: str, number: int, step: int, values: Mapping[str, float]) -> None:
        _common.log_scalars(self._run, axis, number, step, values)

    def log_table(self, name: str, rows: Sequence[Mapping[str, str | float | None]]) -> None:
        import trackio

        _common.log_table(trackio, self._run, name, rows)

    def log_artifacts(self, files: Sequence[Path]) -> None:
        import trackio

        if self.artifacts:
            _common.log_artifacts(trackio, self._run, files)

    def finish(self, status: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


@hookimpl
def rkd_trackers():
    return {"trackio": Trackio}

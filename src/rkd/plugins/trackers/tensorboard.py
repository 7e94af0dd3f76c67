"""TensorBoard: event files in the run's folder; `tensorboard --logdir runs` shows all runs side by side.

Scalars are called `step/loss`, `epoch/val.robust`, `final/clean`; settings, the table of results and the paths of the
files are texts. Files themselves are not copied: TensorBoard shows none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rkd.plugin import hookimpl

from ._common import check_tracker


@dataclass
class TensorBoard:
    """Event files of TensorBoard, in RUN/tensorboard.

    every: steps between two points of a training; 0: points of epochs alone.
    """

    every: int = 50

    _writer: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_tracker("tensorboard", "tensorboard", self.every)

    def start(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        if known is None:
            self.log_table("settings", [{"setting": key, "value": str(value)} for key, value in settings.items()])
        return folder.name

    def log_scalars(self, axis: str, number: int, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{axis}/{name}", value, number)
        self._writer.flush()

    def log_table(self, name: str, rows: Sequence[Mapping[str, str | float | None]]) -> None:
        cells = [list(rows[0]), ["---"] * len(rows[0]), *([str(row.get(key, "")) for key in rows[0]] for row in rows)]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells))

    def log_artifacts(self, files: Sequence[Path]) -> None:
        self._writer.add_text("files", "\n".join(f"- {file.absolute()}" for file in files))

    def finish(self, status: str) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


@hookimpl
def rkd_trackers():
    return {"tensorboard": TensorBoard}

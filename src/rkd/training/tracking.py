"""Trackers: where the numbers of a run go besides its folder, and how they get there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from ..core.errors import RkdError, Stopped
from ..core.hooks import hookimpl
from ..core.run import Run
from ..storage.runfolder import RunFolder
from ..storage.text import flattened, parse_toml, read_text

Axis: TypeAlias = Literal["step", "epoch", "final"]
"""What the number of a point counts: steps of the optimiser, finished epochs; `final`: epochs, of the result."""
Status: TypeAlias = Literal["finished", "stopped", "failed"]


@runtime_checkable
class Tracker(Protocol):
    """Shows a run somewhere else: what `rkd_trackers` registers.

    An instance follows one run, in the first process alone, and hears of each point once, also over `--resume`.
    Whatever it raises is told once, and the run goes on without it. Options are its dataclass fields.

    @dataclass
    class Csv:
        every: int = 10
        def start(self, folder, known, settings):
            self.file = (folder / "points.csv").open("a")
            return "points.csv"
        def log_scalars(self, axis, number, step, values):
            self.file.writelines(f"{axis},{number},{name},{value}\\n" for name, value in values.items())
            self.file.flush()
        def log_table(self, name, rows): ...
        def log_artifacts(self, files): ...
        def finish(self, status):
            self.file.close()
    """

    every: int
    """Steps of the optimiser between two points of a training; 0: no points within an epoch."""

    def start(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> str:
        """A run begins, or goes on. `folder`: the run's own; `settings`: its configuration, a value by its dotted key.
        Returns the tracker's name of the run, which is `known` when the run goes on."""

    def log_scalars(self, axis: Axis, number: int, step: int, values: Mapping[str, float]) -> None:
        """A point: `values` at `number` of `axis`, after `step` steps of the optimiser. It does not come again, also
        where the process is killed once this has returned."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, str | float | None]]) -> None:
        """A table; all rows have the same columns."""

    def log_artifacts(self, files: Sequence[Path]) -> None:
        """Files of the finished run: settings, weights with their card, evaluation, report."""

    def finish(self, status: Status) -> None:
        """The run is over, or stops here and may go on later."""


@dataclass
class Tracking:
    """Follows a run for a tracker (an extension).

    `trackers.json` in the run's folder holds the tracker's name of the run and the last point of each axis: a run that
    goes on passes over the points that were logged before it was stopped. The file is written before the point is, so
    that a process killed in between leaves a gap, and never a point twice.
    """

    name: str
    tracker: Tracker

    _on: bool = field(default=False, init=False, repr=False)
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        if run.folder is None or run.ranks.rank:
            return
        self._on = True
        with self._sheltered(run):
            self._known = _read(RunFolder(run.folder)).get(self.name, {})
            known = self._known.get("run")
            settings = dict(flattened(parse_toml(read_text(run.folder / "config.toml"))))
            self._known["run"] = self.tracker.start(run.folder, known if isinstance(known, str) else None, settings)
            self._write(run)

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        step = run.state.epoch * len(run.loader) + run.state.batch + 1
        if self._on and self.tracker.every and step % self.tracker.every == 0:
            terms = {f"loss.{name}": term.mean() for name, term in run.terms.items()}
            self._log(run, "step", step, {"loss": run.loss_value, **terms, "lr": run.lr * run.lr_scale})

    @hookimpl
    def rkd_epoch_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._log(run, "epoch", run.state.epoch, {name: value for name, value in metrics.items() if name != "epoch"})

    @hookimpl
    def rkd_run_end(self, run: Run, results: dict[str, Any]) -> None:
        if not self._on or run.folder is None:
            return
        nets = {"student": results["student"]} | {f"{t['role']} teacher": t for t in results["teachers"]}
        rows = [
            {"net": name, "model": net["model"], "clean": net["clean"], **net["attacks"]}
            | {"worst case": net["worst_case"] if "worst_case" in net else net["robust"]}
            for name, net in nets.items()
        ]
        self._log(run, "final", run.epochs, {k: v for k, v in rows[0].items() if k not in ("net", "model")})
        folder = RunFolder(run.folder)
        files = [folder.config, folder.card, folder.weights, folder.evaluation, folder.page]
        with self._sheltered(run):
            self.tracker.log_table("results", rows)
            self.tracker.log_artifacts([file for file in files if file.is_file()])
        self._finish(run, "finished")

    @hookimpl
    def rkd_run_stopped(self, run: Run, error: BaseException) -> None:
        self._finish(run, "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed")

    def _log(self, run: Run, axis: Axis, number: int, values: Mapping[str, Any]) -> None:
        last = self._known.get(axis, -1)
        if self._on and (not isinstance(last, int) or number > last):
            with self._sheltered(run):
                self._known[axis] = number
                self._write(run)
                step = run.state.epoch * len(run.loader) if axis != "step" else number
                self.tracker.log_scalars(axis, number, step, {name: float(value) for name, value in values.items()})

    def _finish(self, run: Run, status: Status) -> None:
        if self._on:
            with self._sheltered(run):
                self.tracker.finish(status)
        self._on = False

    def _write(self, run: Run) -> None:
        assert run.folder is not None, "a run without one is not tracked"
        folder = RunFolder(run.folder)
        folder.write_json(folder.trackers, _read(folder) | {self.name: self._known})

    @contextmanager
    def _sheltered(self, run: Run) -> Iterator[None]:
        """What the tracker raises turns it off, and is told."""
        try:
            yield
        except Exception as error:
            self._on = False
            why = str(error).strip().split("\n")[0] or type(error).__name__
            run.hooks.hook.rkd_notice(run=run, text=f"tracker {self.name}: {why}; the run goes on without it")


def _read(folder: RunFolder) -> dict[str, dict[str, Any]]:
    if not folder.trackers.is_file():
        return {}
    content = folder.read_json(folder.trackers)
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise RkdError(f"{folder.trackers} is damaged; remove it, and the trackers begin anew")
    return content

"""What a tracker hears of a run: each point once, over stops and in the first process alone; and that it may fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import Stopped
from rkd.core.hooks import hookimpl
from rkd.core.run import Processes, Run
from rkd.core.trainer import fit
from rkd.storage.runfolder import RunFolder
from rkd.testing import tiny_dataset, tiny_run
from rkd.training.tracking import Tracker, Tracking

from ..core.losses import Clean


@dataclass
class Listing:
    """Keeps what it is told."""

    every: int = 1
    fails: str = ""
    told: list[Any] = field(default_factory=list)

    def _hear(self, what: str, *more: Any) -> None:
        if what == self.fails:
            raise ConnectionError("the server is away\nand so on")
        self.told.append((what, *more))

    def start(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> str:
        self._hear("start", known, dict(settings))
        return known or "run-7"

    def log_scalars(self, axis: str, number: int, step: int, values: Mapping[str, float]) -> None:
        self._hear("scalars", axis, number, step, sorted(values))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._hear("table", name, list(rows))

    def log_artifacts(self, files: Sequence[Path]) -> None:
        self._hear("artifacts", [file.name for file in files])

    def finish(self, status: str) -> None:
        self._hear("finish", status)


@dataclass
class Watch:
    """Stops a run after a step; keeps notices."""

    step: int = 0
    notices: list[str] = field(default_factory=list)

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        if run.state.epoch * len(run.loader) + run.state.batch + 1 == self.step:
            raise Stopped

    @hookimpl
    def rkd_notice(self, run: Run, text: str) -> None:
        self.notices.append(text)


def a_run(folder: RunFolder, tracker: Tracker, watch: Watch, **settings: Any) -> Run:
    """Two epochs of two steps."""
    extensions = {"watch": watch, "tracker mine": Tracking("mine", tracker)}  # the one registered last is called first
    run = tiny_run(Clean(), data=tiny_dataset(24), epochs=2, extensions=extensions, **settings)
    run.folder = folder.path
    return run


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", 'seed = 3\n[loss]\nname = "clean"\n')


def scalars(tracker: Listing) -> list[tuple[str, int, int]]:
    return [(axis, number, step) for what, axis, number, step, _ in [t for t in tracker.told if t[0] == "scalars"]]


RESULTS = {
    "student": {"model": "tiny", "clean": 0.9, "attacks": {"pgd": 0.5}, "worst_case": 0.4},
    "teachers": [{"role": "robust", "model": "wrn", "clean": 0.8, "attacks": {"pgd": 0.7}, "robust": 0.6}],
}


def test_a_whole_run(folder) -> None:
    tracker = Listing()
    assert isinstance(tracker, Tracker)
    run = a_run(folder, tracker, Watch())
    fit(run)
    folder.write_json(folder.card, {})
    run.hooks.hook.rkd_run_end(run=run, results=RESULTS)
    assert tracker.told[0] == ("start", None, {"seed": 3, "loss.name": "clean"})
    steps = [("step", 1, 1), ("step", 2, 2), ("epoch", 1, 2), ("step", 3, 3), ("step", 4, 4), ("epoch", 2, 4)]
    assert scalars(tracker) == [*steps, ("final", 2, 4)]
    assert tracker.told[1][-1] == ["loss", "loss.a", "loss.b", "lr"]
    assert {"loss", "lr", "seconds"} <= set(tracker.told[3][-1])
    assert tracker.told[-3:] == [
        ("table", "results", [
            {"net": "student", "model": "tiny", "clean": 0.9, "pgd": 0.5, "worst case": 0.4},
            {"net": "robust teacher", "model": "wrn", "clean": 0.8, "pgd": 0.7, "worst case": 0.6},
        ]),
        ("artifacts", ["config.toml", "student.json"]),
        ("finish", "finished"),
    ]  # fmt: skip
    assert tracker.told[-4][-1] == ["clean", "pgd", "worst case"]


def test_each_point_once_where_a_run_goes_on(folder) -> None:
    first, second = Listing(), Listing()
    run = a_run(folder, first, Watch(step=3))
    with pytest.raises(Stopped) as caught:
        fit(run)
    run.hooks.hook.rkd_run_stopped(run=run, error=caught.value)
    assert first.told[-1] == ("finish", "stopped")
    fit(a_run(folder, second, Watch()))  # from the beginning: it was stopped before its first checkpoint
    assert second.told[0][:2] == ("start", "run-7")
    assert scalars(first) == [("step", 1, 1), ("step", 2, 2), ("epoch", 1, 2), ("step", 3, 3)]
    assert scalars(second) == [("step", 4, 4), ("epoch", 2, 4)]


def test_fewer_points_and_none_within_an_epoch(folder) -> None:
    tracker = Listing(every=3)
    fit(a_run(folder, tracker, Watch()))
    assert [place[:2] for place in scalars(tracker)] == [("epoch", 1), ("step", 3), ("epoch", 2)]
    tracker = Listing(every=0)
    folder.trackers.unlink()
    fit(a_run(folder, tracker, Watch()))
    assert [place[:2] for place in scalars(tracker)] == [("epoch", 1), ("epoch", 2)]


@pytest.mark.parametrize("fails", ["start", "scalars", "table", "artifacts", "finish"])
def test_one_that_fails_is_told_once_and_ends_nothing(folder, fails) -> None:
    tracker, watch = Listing(fails=fails), Watch()
    run = a_run(folder, tracker, watch)
    fit(run)
    run.hooks.hook.rkd_run_end(run=run, results=RESULTS)
    assert watch.notices == ["tracker mine: the server is away; the run goes on without it"]
    assert fails not in [told[0] for told in tracker.told]
    assert run.state.epoch == 2


def test_a_failed_run_and_a_damaged_memory(folder) -> None:
    tracker, watch = Listing(), Watch(step=1)
    run = a_run(folder, tracker, watch)
    with pytest.raises(Stopped):
        fit(run)
    run.hooks.hook.rkd_run_stopped(run=run, error=ValueError("loss is NaN"))
    assert tracker.told[-1] == ("finish", "failed")
    folder.trackers.write_text(json.dumps([1]))
    fit(a_run(folder, tracker, watch := Watch()))
    assert "trackers.json is damaged" in watch.notices[0]


def test_the_first_process_alone(folder) -> None:
    class Second(Processes):
        rank = 1

    tracker = Listing()
    fit(a_run(folder, tracker, Watch(), ranks=Second()))
    assert tracker.told == [] and not folder.trackers.exists()


def test_two_trackers_of_one_run(folder) -> None:
    extensions = {f"tracker {name}": Tracking(name, Listing()) for name in ("one", "two")}
    run = tiny_run(Clean(), extensions=extensions)
    run.folder = folder.path
    fit(run)
    kept = folder.read_json(folder.trackers)
    assert kept == {name: {"run": "run-7", "step": 2, "epoch": 1} for name in ("one", "two")}

"""check_exporter, check_tracker, check_teacher_source."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rkd import testing
from rkd.core.errors import RkdError
from rkd.export.formats import Artefact, Exported

from .conftest import says


@dataclass
class Writer:
    """An exporter whose artefact is `change`d."""

    change: Callable[[Artefact], Any] = lambda artefact: artefact
    touch: bool = False

    def __call__(self, student: Exported, folder: Path) -> Any:
        (folder / "weights.pt").write_bytes(b"")
        if self.touch:
            student.net.train()
        return self.change(Artefact(copy.deepcopy(student.net), ("weights.pt",), "torch", "torch.load"))


class Single(nn.Module):
    """The first image's answer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = testing.tiny_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[:1]


def test_a_sound_exporter() -> None:
    testing.check_exporter(Writer())


@pytest.mark.parametrize(
    ("exporter", "word"),
    [
        (Writer(lambda artefact: None), "must return an Artefact, got NoneType"),
        (Writer(lambda artefact: replace(artefact, files=())), "names no files"),
        (Writer(lambda artefact: replace(artefact, files=("other",))), "names the file other, and has not written it"),
        (Writer(lambda artefact: replace(artefact, usage="")), "must say what runs its files"),
        (Writer(lambda artefact: replace(artefact, net=Single())), "for 5 images it gives (1, 4)"),
        (Writer(lambda artefact: replace(artefact, net=testing.tiny_net(seed=5))), "answer differently, by"),
        (Writer(touch=True), "Writer"),
    ],
)
def test_exporters_that_break_a_promise(exporter: Writer, word: str) -> None:
    says(lambda: testing.check_exporter(exporter), word)


@dataclass
class Notes:
    """A tracker that calls its runs by `names`, one after another."""

    names: tuple[Any, ...] = ("run", "run")
    every: Any = 5

    def __post_init__(self) -> None:
        self.said: list[Any] = []

    def start(self, folder: Path, known: str | None, settings: dict[str, Any]) -> Any:
        self.said.append(known)
        return self.names[len(self.said) - 1]

    def log_scalars(self, axis: str, number: int, step: int, values: dict[str, float]) -> None: ...
    def log_table(self, name: str, rows: list[Any]) -> None: ...
    def log_artifacts(self, files: list[Path]) -> None: ...
    def finish(self, status: str) -> None: ...


def test_a_sound_tracker() -> None:
    tracker = Notes()
    testing.check_tracker(tracker)  # type: ignore[arg-type]
    assert tracker.said == [None, "run"]


@pytest.mark.parametrize(
    ("tracker", "word"),
    [
        (Notes(("run", "other")), "calls a run that goes on 'other', and it was 'run'"),
        (Notes((3, 3)), "must return its name of the run, got 3"),
        (Notes(every=-1), "every must be a number of steps"),
    ],
)
def test_trackers_that_break_a_promise(tracker: Notes, word: str) -> None:
    says(lambda: testing.check_tracker(tracker), word)  # type: ignore[arg-type]


def test_sources_of_teachers() -> None:
    def greedy(reference: Any, build: Callable[..., Any], data: Any) -> Any:
        return build("resnet18")

    def rude(reference: Any, build: Callable[..., Any], data: Any) -> Any:
        raise RkdError("no such thing")

    testing.check_teacher_source(lambda reference, build, data: None)
    says(lambda: testing.check_teacher_source(greedy), "which is another source's: return None")
    says(lambda: testing.check_teacher_source(rude), "refuses 'another-source:resnet18' (no such thing)")

"""Shared by all steps of the workflow: the resolved plan, and the reporter that is told of the progress.

The command line and `rkd.api` take the types that they speak of from here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rkd.core.interfaces import Loss
from rkd.core.run import Run
from rkd.core.step import AttackPlan
from rkd.core.traits import name_of
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit, Dataset, Split, described, gaps
from rkd.distributed.ranks import ALONE, Ranks, join, leave
from rkd.nets.sources import TeacherReference
from rkd.registry.config import RunConfig
from rkd.training.dry_run import StepCost
from rkd.training.tracking import Tracker

__all__ = [
    "ALONE",
    "ArraySplit",
    "AttackPlan",
    "Dataset",
    "Plan",
    "Progress",
    "Ranks",
    "Reporter",
    "Run",
    "Silent",
    "Split",
    "StepCost",
    "ThreatModel",
    "join",
    "leave",
    "name_of",
]

Progress = Callable[[str, int, int], None]
"""Called with ("clean" or an attack's name, images done, images in all)."""


@dataclass
class Plan:
    """A resolved configuration with the instances of its components; nets are not built yet.

    `notes`: what the user should know of how it was resolved, a sentence each.
    """

    config: RunConfig
    data: Dataset
    loss: Loss
    attacks: dict[str, AttackPlan]
    schedulers: dict[str, Any]
    augments: list[Any]
    extensions: dict[str, Any]
    trackers: dict[str, Tracker]
    teachers: list[TeacherReference]
    evaluation: dict[str, AttackPlan]
    validation_attack: AttackPlan | None
    notes: list[str] = field(default_factory=list)


def tell_data(plan: Plan, reporter: Reporter) -> None:
    """Which classes and images a plan is about, and whatever else the user should know of how it was resolved."""
    reporter.message(described(plan.data))
    for doubt in (*plan.data.notes, *gaps(plan.data)):
        reporter.warning(doubt)
    for note in plan.notes:
        reporter.message(note)


class Reporter(Protocol):
    """Told of a run's progress. The command line draws it; `Silent` does nothing."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def warning(self, text: str) -> None:
        """Something that makes the results doubtful: shown whatever was asked for."""

    def detail(self, text: str) -> None:
        """One line for a user who wants to know more."""

    def doing(self, text: str) -> None:
        """What goes on from now, for a user who would wonder."""

    def cost(self, title: str, run: Run, card: StepCost, seconds: float) -> None:
        """What a training will cost, just before it starts."""

    def training(self, title: str) -> Mapping[str, Any]:
        """Extensions (run-time hooks) that show the training."""

    def evaluating(self, title: str) -> Progress:
        """A function that is told of the progress of an evaluation."""


class Silent:
    """A reporter that says nothing; its warnings are Python's."""

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)

    def detail(self, text: str) -> None: ...

    def doing(self, text: str) -> None: ...

    def cost(self, title: str, run: Run, card: StepCost, seconds: float) -> None: ...

    def training(self, title: str) -> Mapping[str, Any]:
        return {}

    def evaluating(self, title: str) -> Progress:
        return lambda attack, done, total: None

"""Teachers from finished runs: the folder of a run, such as `runs/my-run`.

Architecture, normalisation and classes come from the run's `student.json`; they are checked against the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rkd.plugin import (
    Dataset,
    Net,
    RunFolder,
    TeacherReference,
    WeightsError,
    built_for,
    hookimpl,
    load_into,
    read_card,
    without_download,
)


@dataclass
class RunTeacher:
    """RUN: the student of a finished run, by its folder."""

    def __call__(self, reference: TeacherReference, build: Callable[..., nn.Module], data: Dataset) -> nn.Module | None:
        if not Path(reference.text).is_dir():
            return None
        folder = RunFolder.open(reference.text)
        card = read_card(folder)
        if card.shape != tuple(data.shape) or len(card.classes) != len(data.classes):
            raise WeightsError(
                f"the run {folder.path} is for images {card.shape} and {len(card.classes)} classes; "
                f"data set {data.name!r} has {tuple(data.shape)} and {len(data.classes)}"
            )
        state = folder.load_weights(folder.weights)
        with built_for(state, str(folder.weights)):
            built = build(card.model, without_download(card.options))
        arch = built.arch if isinstance(built, Net) else built
        load_into(arch, state, str(folder.weights))
        return Net(arch, card.mean, card.std)


@hookimpl
def rkd_teachers():
    return {"run": RunTeacher}

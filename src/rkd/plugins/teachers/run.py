"""Teachers from finished runs: the folder of a run, such as `runs/my-run`.

Architecture, normalisation and classes come from the run's `student.json`; they are checked against the data.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rkd.plugin import (
    Dataset,
    Net,
    Outputs,
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

    def __call__(self, reference: TeacherReference, build: Callable[..., Net], data: Dataset) -> nn.Module | None:
        if not os.path.isdir(reference.text):
            return None
        folder = RunFolder.open(reference.text)
        card = read_card(folder)
        places = reference.classes or Outputs.by_name(card.classes, data.classes)
        if card.shape != tuple(data.shape) or not places:
            raise WeightsError(
                f"the run {folder.path} is for images {card.shape} and {len(card.classes)} classes; "
                f"data set {data.name!r} has {tuple(data.shape)} and {len(data.classes)}"
            )
        state = folder.load_weights(folder.weights)
        with built_for(state, str(folder.weights)):
            arch = build(card.model, without_download(card.options), len(card.classes)).arch
        load_into(arch, state, str(folder.weights))
        net = Net(arch, card.mean, card.std)
        if not reference.classes and places != tuple(range(len(card.classes))):
            net.arch = nn.Sequential(arch, Outputs(places))
            net.notes = (f"{folder.path}: its outputs are taken in the order of the data's classes, by name: {places}",)
        elif not reference.classes and tuple(card.classes) != tuple(data.classes):
            net.notes = (f"{folder.path}: its classes have other names than the data's; they are taken in their order",)
        return net


@hookimpl
def rkd_teachers():
    return {"run": RunTeacher}

"""Exporters, trackers, sources of teachers: what has a run's results, or a user's word, on its other side."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from rkd.core.errors import RkdError
from rkd.export.formats import Artefact, Exported, Exporter
from rkd.nets.modes import running
from rkd.nets.net import Net
from rkd.nets.sources import TeacherReference, TeacherSource
from rkd.storage.card import Card
from rkd.training.tracking import Axis, Tracker

from .state import promise, require, untouched
from .tiny import CLASSES, MEAN, SHAPE, STD, TinyNet, tiny_batch, tiny_dataset, tiny_net

CLOSE = 1e-3
"""By how much an exported net's logits may differ, of a net whose logits are about 1."""


@promise
def check_exporter(exporter: Exporter) -> None:
    """Raise AssertionError unless what `exporter` wrote is there, and answers as the student does."""
    who = type(exporter).__name__
    net = tiny_net().eval().requires_grad_(False)
    names = tuple(map(str, range(CLASSES)))
    card = Card("tiny", {}, SHAPE, names, [MEAN] * SHAPE[0], [STD] * SHAPE[0], tiny_dataset().threat)
    x = tiny_batch(5).x
    with tempfile.TemporaryDirectory() as place:
        with untouched(net, who=who):
            artefact = exporter(Exported(net, card, x), Path(place))
        require(isinstance(artefact, Artefact), f"{who} must return an Artefact, got {type(artefact).__name__}")
        require(artefact.files, f"{who} names no files: what does a user ship?")
        for file in artefact.files:
            require((Path(place) / file).is_file(), f"{who} names the file {file}, and has not written it")
        require(artefact.runtime and artefact.usage, f"{who} must say what runs its files, and how")
        with running(artefact.net, "eval"), torch.no_grad():
            for count in (1, 5):
                got, expected = artefact.net(x[:count]), net(x[:count])
                require(got.shape == expected.shape, f"{who}: for {count} images it gives {tuple(got.shape)}")
                gap = float((got - expected).abs().max())
                require(gap <= CLOSE, f"{who}: its files answer differently, by {gap:.2g} of logits about 1")


@promise
def check_tracker(tracker: Tracker) -> None:
    """Raise AssertionError unless `tracker` takes a run, stops, and goes on with it under the same name."""
    who = type(tracker).__name__
    require(isinstance(tracker.every, int) and tracker.every >= 0, f"{who}: every must be a number of steps, 0 or more")
    row: dict[str, Any] = {"net": "student", "clean": 0.9, "robust": None}
    with tempfile.TemporaryDirectory() as place:
        folder, known = Path(place), None
        file = folder / "config.toml"
        file.write_text("seed = 0\n")
        for status in ("stopped", "finished"):
            name = tracker.start(folder, known, {"seed": 0, "loss.name": "ce", "data.classes": ["a", "b"]})
            require(isinstance(name, str), f"{who}.start must return its name of the run, got {name!r}")
            require(known in (None, name), f"{who} calls a run that goes on {name!r}, and it was {known!r}")
            known = name
            points: list[tuple[Axis, int]] = [("step", 10), ("epoch", 1), ("final", 1)]
            for axis, number in points:
                tracker.log_scalars(axis, number, 10, {"loss": 0.5, "val.clean": 1.0})
            tracker.log_table("results", [row])
            tracker.log_artifacts([file])
            tracker.finish(status)


@promise
def check_teacher_source(source: TeacherSource) -> None:
    """Raise AssertionError unless `source` leaves references to others, which are asked in turn."""
    who = type(source).__name__
    data = tiny_dataset()

    def build(name: str, options: Any = None, classes: int | None = None) -> Net:
        return Net(TinyNet(data.shape, classes or len(data.classes)), data.mean, data.std)

    for text in ("another-source:resnet18", "a/folder/that/is/not/there"):
        try:
            found = source(TeacherReference(text, "robust"), build, data)
        except RkdError as error:
            raise AssertionError(f"{who} refuses {text!r} ({error}); return None for what is another's") from None
        require(found is None, f"{who} takes the reference {text!r}, which is another source's: return None")

"""Runs of objects that go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rkd
from rkd.testing import tiny_net

from . import SHORT, Taught, halves, small


class Stopping:
    """Ends the run after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    @rkd.hookimpl
    def rkd_epoch_end(self, run: object, metrics: dict[str, float]) -> None:
        if metrics["epoch"] + 1 == self.epochs:
            raise KeyboardInterrupt


def test_going_on_with_the_same_objects(tmp_path: Path) -> None:
    """Bit for bit where the uninterrupted run ends; other objects, missing ones and other settings are refused."""
    torch.manual_seed(3)
    student, teacher = small(), small()

    def run(name: str, stop: int = 9, **more: object) -> None:
        parts: dict[str, object] = {
            "student": student, "teachers": {"robust": teacher}, "data": halves(), "loss": Taught(),
            "extensions": [Stopping(stop)], **SHORT, **more,
        }  # fmt: skip
        rkd.train(out=tmp_path / name, **{key: part for key, part in parts.items() if part is not None})  # type: ignore[arg-type]

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=1)
    with pytest.raises(rkd.RkdError, match="exists already: choose another folder, or go on with it: resume=True"):
        run("cut")
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    train, test = halves()
    for other, problem in (
        (
            {"student": None},
            "student: this run was made with the model object:Sequential-\\w{6} of .*; give it again",
        ),
        ({"student": tiny_net()}, "of Python code; given is object:.*the names and shapes of its weights"),
        ({"student": wider}, "student: this run was made with .*; given is object:Sequential-"),
        ({"teachers": None}, "teachers.robust: this run was made with the teacher object:Sequential-.*; give it again"),
        ({"teachers": {"robust": small()}}, "given is object:Sequential-.* .the digits tell its weights"),
        ({"data": (test, train)}, "data: this run was made with .*the digits tell its images"),
        ({"loss": "trades"}, "loss: this run was made with the loss object:Taught of Python code"),
        ({"epochs": 5}, "goes on as it began, and asked for is another run: epochs 2 -> 5"),
    ):
        with pytest.raises(rkd.RkdError, match=problem):
            run("cut", resume=True, **other)  # type: ignore[arg-type]
    run("cut", resume=True)
    weights = [rkd.load_student(tmp_path / name, student=student).state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    assert rkd.load_run(tmp_path / "cut").manifest["resumed"] == 1

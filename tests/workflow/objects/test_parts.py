"""Objects on their way into a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rkd
from rkd.workflow.objects.parts import Parts

from . import SHORT, Losses, Taught, halves, small


class Softmax(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(small(), nn.Softmax(1))


def test_a_module_with_settings() -> None:
    parts = Parts()
    parts.add({"student": {"model": small(), "normalize": "data", "conversions": {"aux-bn": {}}}})
    student = parts.table["student"]
    assert student.pop("model").startswith("object:Sequential-")
    assert student == {"normalize": "data", "conversions": {"aux-bn": {}}}
    parts.add({"student": "resnet20+aux-bn"})
    assert parts.table["student"]["model"] == "resnet20"


def test_a_teacher_that_is_normalised_for(tmp_path: Path) -> None:
    """On request: the manifest's configuration says so, and its answers are those to normalised images."""
    seen: list[float] = []

    class Seeing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(float(x.min()))
            return super().forward(x)

    teachers = {"robust": {"reference": Seeing(small()), "normalize": "half"}}
    rkd.train(out=tmp_path / "it", student=small(), teachers=teachers, data=halves(), loss=Taught(), **SHORT)
    assert min(seen) < -0.9
    assert rkd.load_run(tmp_path / "it", student=small()).config["teachers"][0]["normalize"] == "half"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"student": nn.Conv2d}, "student: Conv2d is a class of modules: give an instance"),
        ({"student": 3}, "student is a name .*; got int"),
        ({"student": small(5)}, r"the student returned \(2, 5\) for 2 images; expected \(2, 4\)"),
        ({"student": Softmax()}, "the student returns probabilities, .*take the softmax out"),
        ({"student": nn.LazyLinear(4)}, "the student has lazy layers without weights"),
        ({"student": nn.Linear(7, 4)}, r"the student cannot take images \(3, 8, 8\)"),
        ({"teachers": [small()]}, "teachers"),
        ({"teachers": small()}, "teachers is a table ROLE: TEACHER, .*; got Sequential"),
        ({"teachers": {"robust": 3}}, "the robust teacher is a torch.nn.Module, .*; got int"),
        ({"teachers": {"robust": small(5)}}, r"the robust teacher object:Sequential-\w{6} returned \(2, 5\)"),
        ({"teachers": {}}, r"needs a teacher in the role 'robust'.*from Python: teachers=\{'robust': net\}"),
        ({"data": halves()[0]}, r"data is \(train, test\), .*; got a tuple of 2"),
        ({"loss": 3}, "loss: expected a name, a class, or an object with __call__"),
        ({"extensions": [3]}, "extensions: expected a name, a class, or an object with hooks"),
        ({"extensions": "ema"}, "extensions is a list of names and objects"),
        ({"trackers": [Losses()]}, "trackers: expected a name, a class, or an object with every, start"),
        ({"schedulers": [Losses()]}, "schedulers: expected a name, a class, or an object with update"),
        ({"attack": lambda x: x}, "takes 1 arguments"),
        ({"epoch": 3}, "epoch: there is no such setting. Did you mean epochs"),
        ({"loss": "peeraid"}, "companions.peer: it needs weights of its own, and a copy of the student's module"),
        ({"teachers": {"robust": "mine"}}, "the robust teacher mine cannot be prepared: .*says nothing of a net"),
    ],
)
def test_parts_that_are_none(parts: dict[str, object], problem: str, tmp_path: Path) -> None:
    rkd.register("model", "mine", lambda shape, classes: small(classes))
    whole: dict[str, object] = {"student": small(), "teachers": {"robust": small()}, "data": halves(), "loss": Taught()}
    try:
        with pytest.raises(rkd.RkdError, match=problem):
            rkd.train(out=tmp_path / "it", **{**whole, **SHORT, **parts})  # type: ignore[arg-type]
    finally:
        rkd.forget_registered()
    assert not (tmp_path / "it").exists()

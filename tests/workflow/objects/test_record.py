"""What the manifest says of objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rkd
from rkd.testing import untouched

from . import EPS, SHORT, Losses, Taught, halves, my_fgsm, small


def test_a_run_of_objects(tmp_path: Path) -> None:
    """Nets, data, loss, attack and extension as they are: the nets stay so, and the manifest names them all."""
    student, teacher, losses = small(), small().train(), Losses()
    with untouched(student), untouched(teacher):
        results = rkd.train(
            out=tmp_path / "it", student=student, teachers={"robust": teacher}, data=halves(), loss=Taught(),
            attack=my_fgsm, extensions=[losses], schedulers=[], augments=["flip"],
            **{**SHORT, "evaluate": ["fgsm", my_fgsm]},
        )  # fmt: skip
    assert results["student"]["attacks"]["fgsm"] == results["student"]["attacks"]["object:my_fgsm"]
    run = rkd.load_run(tmp_path / "it", student=student)
    assert [line["loss"] for line in run.history] == losses.seen and len(losses.seen) == 2
    assert set(run.manifest["objects"]) == {
        "data", "student", "teachers.robust", "loss", "attack", "extensions.object:Losses", "evaluate.object:my_fgsm",
    }  # fmt: skip
    assert run.config["student"] == {"model": "object:Sequential", "normalize": "none", "conversions": {}, "strip": ""}
    trained = run.student
    assert not torch.equal(trained.arch[0].weight, student[0].weight)  # type: ignore[index, union-attr]
    test = halves()[1]
    found = rkd.evaluate(trained, test, my_fgsm, eps=EPS, checks="off")
    assert found.accuracy("my_fgsm") == results["student"]["attacks"]["fgsm"]
    with pytest.raises(rkd.RkdError, match="the model 'object:Sequential' was an object of Python code"):
        rkd.load_student(tmp_path / "it")

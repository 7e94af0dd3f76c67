"""What the manifest says of objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import rkd
from rkd.cli import cli
from rkd.testing import tiny_batch, untouched
from rkd.workflow.objects.parts import Parts

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
    model = run.config["student"]["model"]
    assert model.startswith("object:Sequential-") and run.config["student"]["normalize"] == "none"
    assert run.manifest["objects"]["student"] == {
        "kind": "model", "name": model, "class": "Sequential", "module": "torch.nn.modules.container",
    }  # fmt: skip
    trained = run.student
    assert not torch.equal(trained.arch[0].weight, student[0].weight)  # type: ignore[index, union-attr]
    test = halves()[1]
    found = rkd.evaluate(trained, test, my_fgsm, eps=EPS, checks="off")
    assert found.accuracy("my_fgsm") == results["student"]["attacks"]["fgsm"]
    with pytest.raises(rkd.RkdError, match=r"the model 'object:Sequential-\w{6}' was an object of Python code"):
        rkd.load_student(tmp_path / "it")


def test_the_page_of_such_a_run(tmp_path: Path) -> None:
    """It is made, without a word about citations of what was never installed; other commands say what to do."""
    rkd.train(out=tmp_path / "it", student=small(), data=halves(), loss="ce", **SHORT)
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "it")])
    assert done.exit_code == 0 and "warning" not in done.output, done.output
    done = CliRunner().invoke(cli, ["eval", str(tmp_path / "it")])
    said = " ".join(done.output.split())  # a narrow terminal's lines
    assert done.exit_code == 2 and "was an object of Python code, which no file holds" in said


def test_names_tell_other_nets_and_data_apart() -> None:
    """`rkd compare` takes runs of equal configurations for repetitions of one another."""

    def names(student: nn.Module, teacher: nn.Module, images: torch.Tensor) -> tuple[str, str, str]:
        parts = Parts()
        labels = torch.arange(len(images)) % 4
        data = ((images, labels), (images, labels))
        parts.add({"student": student, "teachers": {"robust": teacher}, "data": data})
        table = parts.table
        return table["student"]["model"], table["teachers"][0]["reference"], table["data"]["name"]

    images = tiny_batch(8).x
    one, deeper = small(), nn.Sequential(small(), nn.Linear(4, 4))
    first, again = names(one, one, images), names(small(), one, images)
    assert first == again, "a student of other weights is another repetition"
    others = names(deeper, small(), 1 - images)
    assert all(a != b for a, b in zip(first, others, strict=True))

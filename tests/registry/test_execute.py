"""A whole run: what it leaves; its configuration repeats it, it goes on exactly, and mistakes write nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import rkd
from rkd.core.errors import RkdError
from rkd.core.hookspecs import hookimpl
from rkd.core.runfolder import RunFolder
from rkd.registry.catalog import load_catalog
from rkd.registry.config import read_recipe
from rkd.registry.execute import Silent, execute
from rkd.registry.resolve import resolve

CATALOG = load_catalog()


def table(**changes: Any) -> dict[str, Any]:
    return {
        "loss": {"name": "trades"},
        "attack": {"steps": 1},
        "student": {"model": "small-cnn", "width": 4},
        "epochs": 3,
        "batch_size": 256,
        "validate": {"steps": 1, "limit": 50},
        "evaluate": {"attacks": ["fgsm", "pgd-sat"], "limit": 40},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "mine"
    random = torch.get_rng_state()
    results = execute(table(), CATALOG, path)
    assert torch.equal(torch.get_rng_state(), random), "a run must not touch the global random state"
    return path, results


def weights(path: Path) -> bytes:
    return (path / "student.safetensors").read_bytes()


def test_what_it_returns_and_leaves(finished) -> None:
    path, results = finished
    assert (results["run"], results["seed"], results["epochs"]) == (str(path), 0, 3)
    student = results["student"]
    assert (student["model"], student["samples"], set(student["attacks"])) == ("small-cnn", 40, {"fgsm", "pgd-sat"})
    assert all(0 <= value <= 1 for value in [student["clean"], *student["attacks"].values()])
    assert json.loads(json.dumps(results)) == results, "plain JSON"
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert files == {
        "config.toml", "manifest.json", "metrics.jsonl", "student.safetensors", "student.json", "evaluation.json",
        "examples.safetensors", "checkpoints/last.safetensors", "checkpoints/best.safetensors",
    }  # fmt: skip
    folder = RunFolder.open(path)
    assert [line["epoch"] for line in folder.history()] == [0, 1, 2]
    assert folder.read_json(folder.manifest)["status"] == "finished"
    assert student["chosen_epoch"] in range(3)


def test_the_student_can_be_used(finished) -> None:
    path, results = finished
    net = rkd.load_student(path)
    data = resolve(table(), CATALOG).data
    again = rkd.evaluate(net, data, ["fgsm"], limit=40)
    assert again.accuracy() == results["student"]["clean"]
    assert again.accuracy("fgsm") == results["student"]["attacks"]["fgsm"]
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_its_configuration_repeats_it(finished, tmp_path: Path) -> None:
    path, results = finished
    again = execute(read_recipe(path / "config.toml"), CATALOG, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(path)
    assert again["student"]["attacks"] == results["student"]["attacks"]
    assert (tmp_path / "again" / "config.toml").read_text() == (path / "config.toml").read_text()


def test_another_seed_is_another_run(finished, tmp_path: Path) -> None:
    execute(table(seed=1), CATALOG, tmp_path / "run")
    assert weights(tmp_path / "run") != weights(finished[0])


class Stopper(Silent):
    """Interrupts a training, as Ctrl-C would."""

    def __init__(self, epoch: int, where: str) -> None:
        self.epoch, self.where = epoch, where

    def training(self, title: str) -> dict[str, Any]:
        stopper = self

        class Hooks:
            @hookimpl
            def rkd_after_update(self, run):
                if stopper.where == "middle" and run.epoch == stopper.epoch:
                    raise KeyboardInterrupt

            @hookimpl
            def rkd_epoch_end(self, run, metrics):
                if stopper.where == "end" and metrics["epoch"] == stopper.epoch:
                    raise KeyboardInterrupt

        return {"stopper": Hooks()}


@pytest.mark.parametrize(("epoch", "where"), [(0, "middle"), (0, "end"), (1, "middle"), (2, "end")])
def test_it_goes_on_exactly(epoch: int, where: str, finished, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        execute(table(), CATALOG, path, Stopper(epoch, where))
    folder = RunFolder.open(path)
    assert folder.read_json(folder.manifest)["status"] == "interrupted"
    execute(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert weights(path) == weights(finished[0])
    assert [line["epoch"] for line in folder.history()] == [0, 1, 2]
    assert folder.read_json(folder.manifest)["status"] == "finished"
    expected = RunFolder(finished[0]).history()
    for line, other in zip(folder.history(), expected, strict=True):
        assert {k: v for k, v in line.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_a_crash_between_metrics_and_checkpoint(finished, tmp_path: Path) -> None:
    """The first epoch is in metrics.jsonl, its checkpoint never came: it is not there twice afterwards."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        execute(table(), CATALOG, path, Stopper(0, "middle"))
    folder = RunFolder.open(path)
    folder.log({"epoch": 0, "loss": 1.0})
    execute(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert [line["epoch"] for line in folder.history()] == [0, 1, 2]
    assert weights(path) == weights(finished[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"name": "nothing"}},
        {"loss": {"name": "kd", "T": 2}, "attack": {"name": "pgd"}},  # an attack that nobody asks for
        {"loss": {"name": "ce"}, "attack": {}, "student": {"model": "mlp", "conversions": {"aux-bn": {}}}},
        {"optimizer": {"lr": -1}},
        {"device": "cuda:99"},
    ],
    ids=str,
)
def test_mistakes_write_nothing(changes: dict, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(RkdError):
        execute(table(**changes), CATALOG, tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, cache: Path) -> None:
    for loss in ("trades", "mtard-anl"):
        answer = execute(table(loss={"name": loss}), CATALOG, tmp_path / "runs" / "run", dry_run=True)
        assert answer["cost"]["student"]["forwards"] == {"trades": 4, "mtard-anl": 3}[loss]
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_place_that_is_taken(finished, tmp_path: Path) -> None:
    before = weights(finished[0])
    with pytest.raises(RkdError, match=r"exists already.*--resume"):
        execute(table(), CATALOG, finished[0])
    assert weights(finished[0]) == before
    (tmp_path / "file").touch()
    with pytest.raises(RkdError):
        execute(table(), CATALOG, tmp_path / "file" / "run")


def test_a_training_that_fails_says_so_in_its_manifest(tmp_path: Path) -> None:
    with pytest.raises(RkdError, match="the loss became"):
        execute(table(optimizer={"lr": 1e25, "schedule": 1.0}), CATALOG, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.read_json(folder.manifest)["status"].startswith("failed: TrainingFailed: the loss became")


def test_an_evaluation_that_cannot_work_is_refused_before_the_training(tmp_path: Path) -> None:
    """Not after hours: an objective that needs a teacher has none in an evaluation."""
    rules = {"attacks": ["cw"], "options": {"cw": {"objective": "kl-teacher"}}, "limit": 40}
    with pytest.raises(RkdError, match="teacher"):
        execute(table(evaluate=rules), CATALOG, tmp_path / "run")
    rules = {"attacks": ["cw"], "options": {"cw": {"norm": "L2"}}, "limit": 40}
    with pytest.raises(RkdError, match="its own eps"):
        execute(table(evaluate=rules), CATALOG, tmp_path / "run")
    assert not (tmp_path / "run").exists()

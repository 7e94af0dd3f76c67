"""A whole run: what it leaves; its configuration repeats it, it goes on exactly, and mistakes write nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import rkd
from rkd.core.errors import RkdError, Stopped, TrainingFailed
from rkd.core.hooks import hookimpl
from rkd.registry.catalog import load_catalog
from rkd.registry.recipes import read_recipe
from rkd.storage.lock import run_lock
from rkd.storage.runfolder import RunFolder
from rkd.training import teacher_cache
from rkd.workflow.plan import Silent
from rkd.workflow.resolve import resolve
from rkd.workflow.train import train_run

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
    results = train_run(table(), CATALOG, path)
    assert torch.equal(torch.get_rng_state(), random), "a run must not touch the global random state"
    return path, results


def weights(path: Path) -> bytes:
    return (path / "student.safetensors").read_bytes()


@pytest.mark.slow
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
    assert folder.read_json(folder.manifest)["sizes"]["student"]["macs"] > 0
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


@pytest.mark.slow
def test_its_configuration_repeats_it(finished, tmp_path: Path) -> None:
    path, results = finished
    again = train_run(read_recipe(path / "config.toml"), CATALOG, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(path)
    assert again["student"]["attacks"] == results["student"]["attacks"]
    assert (tmp_path / "again" / "config.toml").read_text() == (path / "config.toml").read_text()


@pytest.mark.slow
def test_another_seed_is_another_run(finished, tmp_path: Path) -> None:
    train_run(table(seed=1), CATALOG, tmp_path / "run")
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
                if stopper.where == "middle" and run.state.epoch == stopper.epoch:
                    raise KeyboardInterrupt

            @hookimpl
            def rkd_epoch_end(self, run, metrics):
                if stopper.where == "end" and metrics["epoch"] == stopper.epoch:
                    raise KeyboardInterrupt

        return {"stopper": Hooks()}


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "where"), [(0, "middle"), (0, "end"), (1, "middle"), (2, "end")])
def test_it_goes_on_exactly(epoch: int, where: str, finished, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(table(), CATALOG, path, Stopper(epoch, where))
    folder = RunFolder.open(path)
    assert folder.read_json(folder.manifest)["status"] == "interrupted"
    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert weights(path) == weights(finished[0])
    assert [line["epoch"] for line in folder.history()] == [0, 1, 2]
    assert folder.read_json(folder.manifest)["status"] == "finished"
    expected = RunFolder(finished[0]).history()
    for line, other in zip(folder.history(), expected, strict=True):
        assert {k: v for k, v in line.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


class StopsAt(Silent):
    """Asks for a stop after a step, as a first Ctrl-C or SIGTERM does."""

    def __init__(self, epoch: int, batch_number: int) -> None:
        self.place = epoch, batch_number

    def training(self, title: str) -> dict[str, Any]:
        place = self.place

        class Hooks:
            @hookimpl
            def rkd_stop(self, run):
                return (run.state.epoch, run.state.batch - 1) == place or None

        return {"stopper": Hooks()}


@pytest.mark.slow
def test_it_goes_on_exactly_from_within_an_epoch(finished, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Stopped, match="stopped after step 3/6 of epoch 2"):
        train_run(table(), CATALOG, path, StopsAt(1, 2))
    folder = RunFolder.open(path)
    assert folder.place() == (1, 3, 6)
    assert folder.read_json(folder.manifest)["status"] == "interrupted"
    began = folder.read_json(folder.manifest)["started"]
    with pytest.raises(Stopped):
        train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, StopsAt(2, 0), resume=True)
    with open(folder.metrics, "a") as file:  # a power cut may leave anything behind the last line
        file.write('{"epoch": 2, "los')
    folder.best.write_bytes(b"torn")
    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert weights(path) == weights(finished[0])
    manifest = folder.read_json(folder.manifest)
    assert (manifest["resumed"], manifest["started"]) == (2, began)
    assert not folder.lock.exists() and len(folder.saved()) == 1
    for line, other in zip(folder.history(), RunFolder(finished[0]).history(), strict=True):
        assert {k: v for k, v in line.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


@pytest.mark.slow
def test_it_goes_on_exactly_with_teachers_and_everything_that_adapts(finished, tmp_path: Path) -> None:
    """Answers of teachers that are kept between epochs are made anew, and are the same."""
    teachers = [{"role": role, "reference": str(finished[0])} for role in ("robust", "clean")]
    mine = table(
        loss={"name": "mtard-anl"}, teachers=teachers, extensions={"ema": {"decay": 0.5}}, grad_accumulation=2,
        student={"model": "small-cnn", "width": 4, "conversions": {"aux-bn": {}}},
    )  # fmt: skip
    train_run(mine, CATALOG, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_run(mine, CATALOG, tmp_path / "run", StopsAt(1, 3))
    train_run(tomllib.loads((tmp_path / "run" / "config.toml").read_text()), CATALOG, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    histories = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(tmp_path / name).history()]
        for name in ("run", "whole")
    ]
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize("found", ["newer answers", "no answers", "damaged answers", "a whole run's answers"])
def test_it_goes_on_exactly_whatever_answers_of_teachers_are_kept(
    found: str, finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmented images: answers are kept in a file beside the checkpoints, and neither knows of the other."""
    monkeypatch.setattr(teacher_cache, "IN_MEMORY", 0)
    teachers = [{"role": role, "reference": str(finished[0])} for role in ("robust", "clean")]
    mine = table(
        loss={"name": "mtard-anl"}, teachers=teachers, augments={"crop": {"padding": 1}, "flip": {}}, teacher_cache="on"
    )
    said: list[str] = []

    class Listener(Silent):
        def detail(self, text: str) -> None:
            said.append(text)

    caches = {name: tmp_path / f"{name} cache" for name in ("whole", "run")}
    monkeypatch.setenv("RKD_CACHE", str(caches["whole"]))
    train_run(mine, CATALOG, tmp_path / "whole", Listener())
    (line,) = [text for text in said if text.endswith("of the answers to clean images were looked up")]
    assert line.startswith("teacher clean: ") and not line.startswith("teacher clean: 0%")
    monkeypatch.setenv("RKD_CACHE", str(caches["run"]))
    with pytest.raises(KeyboardInterrupt):
        train_run(mine, CATALOG, tmp_path / "run", Stopper(1, "middle"))
    (path,) = (caches["run"] / "answers").iterdir()
    if found == "no answers":
        path.unlink()
    elif found == "damaged answers":
        content = path.read_bytes()
        path.write_bytes(os.urandom(len(content) // 4) + content[len(content) // 4 : len(content) // 2])
    elif found == "a whole run's answers":
        monkeypatch.setenv("RKD_CACHE", str(caches["whole"]))
    train_run(tomllib.loads((tmp_path / "run" / "config.toml").read_text()), CATALOG, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    # A second run with everything there, and one without a memory: here a net's answers do not depend on the batch.
    train_run(mine | {"teacher_cache": "off" if found == "no answers" else "on"}, CATALOG, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(finished, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Stopped):
        train_run(table(), CATALOG, path, StopsAt(1, 2))
    folder = RunFolder.open(path)
    content = bytearray(folder.last.read_bytes())
    content[-100] ^= 16
    folder.last.write_bytes(content)
    said: list[str] = []

    class Listener(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, Listener(), resume=True)
    assert any("last.safetensors" in text and "its checksum is wrong" in text and "before it" in text for text in said)
    assert any("continuing after epoch 1 of 3" in text for text in said)
    assert weights(path) == weights(finished[0])


@pytest.mark.slow
def test_two_processes_and_one_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Stopped):
        train_run(table(), CATALOG, path, StopsAt(0, 2))
    config = tomllib.loads((path / "config.toml").read_text())
    before = (path / "checkpoints" / "last.safetensors").read_bytes()
    with (
        run_lock(RunFolder(path)),
        pytest.raises(RkdError, match=rf"another process \({os.getpid()} on .*is working on .*wait for it, or stop it"),
    ):
        train_run(config, CATALOG, path, resume=True)
    assert (path / "checkpoints" / "last.safetensors").read_bytes() == before
    train_run(config, CATALOG, path, resume=True)
    with pytest.raises(RkdError, match="is finished"):
        train_run(config, CATALOG, path, resume=True)


@pytest.mark.slow
def test_other_data_is_no_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def write(seed: int) -> None:
        random = np.random.default_rng(seed)
        images, labels = random.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
        np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    write(0)
    mine = table(data={"name": f"npz:{tmp_path / 'd.npz'}"}, batch_size=10)
    with pytest.raises(Stopped):
        train_run(mine, CATALOG, tmp_path / "run", StopsAt(0, 2))
    write(1)
    with pytest.raises(RkdError, match=r"has changed since this run began .*put the old data back"):
        train_run(mine, CATALOG, tmp_path / "run", resume=True)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RkdError, match=r"d\.npz is not a whole \.npz file"):
        train_run(mine, CATALOG, tmp_path / "run", resume=True)
    write(0)
    train_run(mine, CATALOG, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_other_teachers_or_other_libraries(finished, tmp_path: Path) -> None:
    path = tmp_path / "run"
    teacher = tmp_path / "teacher"
    shutil.copytree(finished[0], teacher)
    mine = table(loss={"name": "rslad"}, teachers=[{"role": "robust", "reference": str(teacher)}])
    with pytest.raises(Stopped):
        train_run(mine, CATALOG, path, StopsAt(0, 2))
    folder = RunFolder(path)
    manifest = folder.read_json(folder.manifest)
    manifest["versions"]["torch"] = "1.0"
    folder.write_json(folder.manifest, manifest)
    original = folder.load_weights(teacher / "student.safetensors")
    folder.save_weights(
        teacher / "student.safetensors", {n: t + 0 * t if "num" in n else t * 2 for n, t in original.items()}
    )
    with pytest.raises(RkdError, match="the robust teacher's weights have changed"):
        train_run(mine, CATALOG, path, resume=True)
    folder.save_weights(teacher / "student.safetensors", original)
    said: list[str] = []

    class Listener(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    train_run(mine, CATALOG, path, Listener(), resume=True)
    assert any(
        re.search(r"since the run began: torch 1\.0 -> \S+; it may end with other last bits", text) for text in said
    )


@pytest.mark.slow
def test_auto_batch_stands_in_the_configuration_as_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rkd.workflow.train.auto_micro_batches", lambda run, ranks: 3)
    said: list[str] = []

    class Listener(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    train_run(table(auto_batch=True, epochs=1), CATALOG, tmp_path / "auto", Listener())
    assert "a batch of 256 fits into the memory of cpu in 3 parts (--grad-accumulation 3)" in said
    config = tomllib.loads((tmp_path / "auto" / "config.toml").read_text())
    assert (config["grad_accumulation"], config["auto_batch"], config["batch_size"]) == (3, False, 256)
    train_run(table(grad_accumulation=3, epochs=1), CATALOG, tmp_path / "told")
    assert weights(tmp_path / "auto") == weights(tmp_path / "told")


class Meanwhile(Silent):
    """Something happens to the run's folder after an epoch."""

    def __init__(self, epoch: int, what: Any) -> None:
        self.epoch, self.what = epoch, what

    def training(self, title: str) -> dict[str, Any]:
        mine = self

        class Hooks:
            @hookimpl
            def rkd_epoch_end(self, run, metrics):
                if metrics["epoch"] == mine.epoch:
                    mine.what(run.checkpoints.folder)

        return {"meanwhile": Hooks()}


@pytest.mark.slow
@pytest.mark.parametrize(("most", "file"), [(16_384, "next.safetensors"), (1, "metrics.jsonl")])
def test_a_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(
    most: int, file: str, finished, tmp_path: Path
) -> None:
    """A limit on the size of files makes the system refuse in the middle of a file, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "run"
    try:
        with pytest.raises(RkdError, match=rf"cannot write .*{re.escape(file)}: File too large"):
            full = Meanwhile(1, lambda folder: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1])))
            train_run(table(), CATALOG, path, full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder = RunFolder(path)
    assert folder.place() == (1, 0, 6)
    assert not list(path.rglob("*.tmp"))
    if most > 1:
        assert "File too large" in folder.read_json(folder.manifest)["status"]
    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert weights(path) == weights(finished[0])


@pytest.mark.slow
def test_a_folder_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RkdError, match=r"cannot write .*run is gone \(deleted or moved in the meantime\?\)"):
        train_run(table(), CATALOG, path, Meanwhile(1, lambda folder: shutil.rmtree(folder.path)))
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_becomes_read_only(finished, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RkdError, match=r"cannot write .*Permission denied"):
        train_run(table(), CATALOG, path, Meanwhile(1, lambda folder: folder.checkpoints.chmod(0o555)))
    folder = RunFolder(path)
    with pytest.raises(RkdError, match=r"cannot write .*Permission denied"):
        train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    folder.checkpoints.chmod(0o755)
    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert weights(path) == weights(finished[0])


@pytest.mark.slow
def test_an_image_that_is_truncated_meanwhile(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(6):
                grey = 40 * number + (label == "a")
                Image.new("L", (8, 8), grey).save(tmp_path / "data" / part / label / f"{number}.png")
    cut = tmp_path / "data" / "train" / "b" / "3.png"
    content = cut.read_bytes()
    mine = table(
        data={"name": f"imagefolder:{tmp_path / 'data'}", "validation": 0, "memory_mib": 0}, batch_size=4, epochs=2,
        evaluate={"attacks": ["fgsm"]},
    )  # fmt: skip
    with pytest.raises(RkdError, match=r"images that cannot be read: .*3\.png"):
        train_run(mine, CATALOG, tmp_path / "run", Meanwhile(0, lambda folder: cut.write_bytes(content[:50])))
    assert RunFolder(tmp_path / "run").place() == (1, 0, 3)
    cut.write_bytes(content)
    train_run(mine, CATALOG, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_crash_between_metrics_and_checkpoint(finished, tmp_path: Path) -> None:
    """The first epoch is in metrics.jsonl, its checkpoint never came: it is not there twice afterwards."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(table(), CATALOG, path, Stopper(0, "middle"))
    folder = RunFolder.open(path)
    folder.log({"epoch": 0, "loss": 1.0})
    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
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
        train_run(table(**changes), CATALOG, tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path: Path, cache: Path) -> None:
    for loss in ("trades", "mtard-anl"):
        answer = train_run(table(loss={"name": loss}), CATALOG, tmp_path / "runs" / "run", dry_run=True)
        assert answer["cost"]["student"]["forwards"] == {"trades": 4, "mtard-anl": 3}[loss]
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_place_that_is_taken(finished, tmp_path: Path) -> None:
    before = weights(finished[0])
    with pytest.raises(RkdError, match=r"exists already.*--resume"):
        train_run(table(), CATALOG, finished[0])
    assert weights(finished[0]) == before
    (tmp_path / "file").touch()
    with pytest.raises(RkdError):
        train_run(table(), CATALOG, tmp_path / "file" / "run")


def test_a_training_that_fails_says_so_in_its_manifest(tmp_path: Path) -> None:
    with pytest.raises(RkdError, match="the loss became"):
        train_run(table(optimizer={"lr": 1e25, "schedule": 1.0}), CATALOG, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.read_json(folder.manifest)["status"].startswith("failed: TrainingFailed: the training diverged")


def test_an_evaluation_that_cannot_work_is_refused_before_the_training(tmp_path: Path) -> None:
    """Not after hours: an objective that needs a teacher has none in an evaluation."""
    rules = {"attacks": ["cw"], "options": {"cw": {"objective": "kl-teacher"}}, "limit": 40}
    with pytest.raises(RkdError, match="teacher"):
        train_run(table(evaluate=rules), CATALOG, tmp_path / "run")
    rules = {"attacks": ["cw"], "options": {"cw": {"norm": "L2"}}, "limit": 40}
    with pytest.raises(RkdError, match="its own eps"):
        train_run(table(evaluate=rules), CATALOG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_learning_rate_that_is_too_large_is_told(tmp_path: Path) -> None:
    """The loss and the weights are finite, the net's logits are not: it ended in "continue with --resume"."""
    with pytest.raises(TrainingFailed) as caught:
        train_run(table(epochs=1, optimizer={"lr": 1e20}), CATALOG, tmp_path / "run")
    said = str(caught.value)
    assert "the training diverged at a learning rate of " in said and "it began at 1e+20" in said
    assert "epoch" in said and "--lr" in said and "clip_gradient" in said


def test_extensions_hear_how_a_run_ends(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listening(Silent):
        def __init__(self, breaks: bool) -> None:
            self.breaks = breaks

        def training(self, title: str) -> dict[str, Any]:
            breaks = self.breaks

            class Hooks:
                @hookimpl
                def rkd_epoch_end(self, run, metrics):
                    if breaks:
                        raise RkdError("no more")

                @hookimpl
                def rkd_run_stopped(self, run, error):
                    heard.append(f"stopped: {error}")

                @hookimpl
                def rkd_run_end(self, run, results):
                    heard.append("ended")

            return {"it": Hooks()}

    train_run(table(epochs=1), CATALOG, tmp_path / "whole", Listening(False))
    with pytest.raises(RkdError, match="no more"):
        train_run(table(epochs=1), CATALOG, tmp_path / "broken", Listening(True))
    assert heard == ["ended", "stopped: no more"]

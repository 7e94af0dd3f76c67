"""The folder of a run: made once, read with suspicion, its newest checkpoint always whole."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rkd.cli import cli
from rkd.core.errors import RkdError, WeightsError
from rkd.registry.catalog import Catalog
from rkd.storage.runfolder import RunFolder, safe_name
from rkd.storage.serialize import load_state
from rkd.workflow.nets import load_run

from .test_card import card, run_of


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "mine")
    assert folder.checkpoints.is_dir()
    with pytest.raises(RkdError, match=r"exists already.*--resume"):
        RunFolder.create(folder.path)
    with pytest.raises(RkdError, match="is not a run"):
        RunFolder.open(folder.path)
    folder.write_config("seed = 0\n")
    assert RunFolder.open(folder.path).config.read_text() == "seed = 0\n"
    (tmp_path / "file").touch()
    with pytest.raises(RkdError, match="--out"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_folder_has_its_configuration_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is made, there is no folder: half of one could be neither continued nor begun again."""
    seen = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append(((self / "config.toml").read_text(), target.exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    folder = RunFolder.create(tmp_path / "runs" / "mine", "seed = 1\n")
    assert seen == [("seed = 1\n", False)]
    assert os.listdir(tmp_path / "runs") == ["mine"]
    assert RunFolder.open(folder.path).config.read_text() == "seed = 1\n"
    (tmp_path / "runs" / "empty").mkdir()
    with pytest.raises(RkdError, match="exists already"):
        RunFolder.create(tmp_path / "runs" / "empty", "")
    assert sorted(os.listdir(tmp_path / "runs")) == ["empty", "mine"]


def steps(folder: RunFolder) -> list[int]:
    return [load_state(path)["step"] for path in folder.saved()]


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert (folder.load(), folder.place()) == ((None, []), None)
    for step in range(5):
        folder.save({"step": step}, keep=3)
    assert steps(folder) == [4, 3, 2]
    folder.save({"step": 5, "epoch": 1, "done": 2, "batches": 9}, keep=2)
    assert steps(folder) == [5, 4]
    assert folder.place() == (1, 2, 9)
    folder.save({"step": 6}, keep=1)
    assert steps(folder) == [6]
    assert sorted(os.listdir(folder.checkpoints)) == ["last.safetensors"]
    folder.save({"step": 7})
    folder.prune()
    assert steps(folder) == [7]


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: c[:-3] + bytes([c[-3] ^ 1]) + c[-2:]])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for step in range(3):
        folder.save({"step": step, "a": torch.ones(5)})
    folder.last.write_bytes(damage(folder.last.read_bytes()))
    state, words = folder.load()
    assert state is not None and state["step"] == 1
    assert len(words) == 1 and "last.safetensors is not a readable checkpoint" in words[0]
    folder.save({"step": 2, "a": torch.ones(5)})
    assert steps(folder) == [2, 1], "the good one has not made room for the damaged one"
    for path in folder.saved():
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"last\.safetensors.*previous-1\.safetensors.*rm "):
        folder.load()


def test_a_crash_at_any_point_of_a_save_leaves_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that touches the disk fails in turn, as if the machine stopped there."""
    names = ("fsync", "replace", "rename", "unlink")

    def attempt(fail_at: int) -> tuple[RunFolder, int]:
        folder = RunFolder.create(tmp_path / str(fail_at))
        for step in range(3):
            folder.save({"step": step})
        calls = 0

        class Power(BaseException):
            pass

        with monkeypatch.context() as patch:
            for name in names:
                real = getattr(os, name)

                def call(*arguments, real=real, **settings):
                    nonlocal calls
                    calls += 1
                    if calls > fail_at:
                        raise Power
                    return real(*arguments, **settings)

                patch.setattr(os, name, call)
            with contextlib.suppress(Power):
                folder.save({"step": 3})
        return folder, calls

    _, total = attempt(10**6)
    assert total >= 5
    for fail_at in range(total):
        folder, _ = attempt(fail_at)
        state, _ = folder.load()
        assert state is not None and state["step"] in (2, 3), fail_at
        folder.tidy()
        folder.save({"step": 4})
        assert steps(folder)[0] == 4


def test_metrics_survive_a_torn_line(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for epoch in range(3):
        folder.log({"epoch": epoch, "loss": 0.5})
    with open(folder.metrics, "a") as file:
        file.write('{"epoch": 3, "lo')
    assert [line["epoch"] for line in folder.history()] == [0, 1, 2]
    folder.rewrite_history(folder.history()[:2])
    assert [line["epoch"] for line in folder.history()] == [0, 1]
    folder.log({"epoch": 2})
    assert [json.loads(line)["epoch"] for line in folder.metrics.read_text().splitlines()] == [0, 1, 2]


def test_json_files(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RkdError, match="did not finish"):
        folder.read_json(folder.evaluation)
    folder.write_json(folder.evaluation, {"a": 1})
    assert folder.read_json(folder.evaluation) == {"a": 1}
    folder.evaluation.write_text("{")
    with pytest.raises(RkdError, match="cannot read"):
        folder.read_json(folder.evaluation)


@pytest.mark.parametrize("name", ["mine", "a.b", "2026-01-01_x+y=3"])
def test_names_of_runs(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "a b", "a\n", "-x", "a\\b", "é"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RkdError, match="cannot be a run's name"):
        safe_name(name)


@pytest.mark.parametrize("name", ["config.toml", "student.json", "metrics.jsonl", "plots", ".lock", "checkpoints",
                                  "checkpoints/last.safetensors", "checkpoints/evaluation"])  # fmt: skip
def test_links_out_of_a_run(name: str, tmp_path: Path, catalog: Catalog) -> None:
    folder = run_of(tmp_path / "run", card(), catalog)
    outside = tmp_path / "outside.toml"
    outside.write_text("epochs = 1\n")
    place = folder.path / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(outside)
    with pytest.raises(RkdError, match="link to somewhere else"):
        RunFolder.open(folder.path)
    said = CliRunner().invoke(cli, ["report", str(folder.path)])
    assert said.exit_code == 2 and "link to somewhere else" in said.output
    assert outside.read_text() == "epochs = 1\n"
    place.unlink()
    inside = folder.path / "own.txt"
    inside.write_text("epochs = 1\n")
    place.symlink_to(inside)
    RunFolder.open(folder.path)


def test_the_folder_itself_may_be_a_link(tmp_path: Path, catalog: Catalog) -> None:
    run_of(tmp_path / "run", card(), catalog)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    load_run(tmp_path / "link", catalog)

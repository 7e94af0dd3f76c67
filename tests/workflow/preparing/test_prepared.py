"""Nets that are trained once and kept: their folder's name, and a training that another process began.

How two processes share one stands in `test_teachers.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.core.errors import RkdError, TrainingFailed
from rkd.data.dataset import Dataset
from rkd.distributed.ranks import ALONE
from rkd.registry.catalog import load_catalog
from rkd.workflow.plan import Silent
from rkd.workflow.preparing.prepared import is_prepared, place_of_prepared, prepare_into
from rkd.workflow.resolve import resolve


@pytest.fixture(scope="module")
def data() -> Dataset:
    return resolve({"loss": {"name": "ce"}}, load_catalog()).data


def test_the_folder_says_what_is_in_it(data: Dataset, cache: Path) -> None:
    table = {"data": {"name": "digits"}, "epochs": 3}
    place = place_of_prepared(table, "teachers", ("robust", "../wrn"), data)
    assert place.parent == cache / "teachers" and place.name.startswith("digits-robust-")
    assert "/" not in place.name and ".." not in place.name.split("-")
    moved = {**table, "data": {"name": "digits", "dir": "/elsewhere"}, "device": "cuda", "evaluate": {"limit": 3}}
    assert place_of_prepared(moved, "teachers", ("robust", "../wrn"), data) == place
    assert place_of_prepared({**table, "epochs": 4}, "teachers", ("robust", "../wrn"), data) != place


def write(path: Path, *files: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name in files:
        (path / name).write_text("{}")


def test_what_is_complete_is_not_trained_again(tmp_path: Path) -> None:
    calls = []

    def train(path: Path, resume: bool) -> None:
        calls.append((path.name, resume))
        write(path, "config.toml", "evaluation.json")

    for _ in range(2):
        prepare_into(tmp_path / "net", "the net", train, Silent(), ALONE, "change it so")
    assert calls == [("net.part", False)] and is_prepared(tmp_path / "net")


def test_what_was_begun_goes_on_or_is_begun_anew(tmp_path: Path) -> None:
    calls = []

    def train(path: Path, resume: bool) -> None:
        calls.append(resume)
        if resume:
            raise RkdError("its configuration cannot be read")
        assert not (path / "rest").exists()
        write(path, "evaluation.json")

    write(tmp_path / "net.part", "config.toml", "rest")
    prepare_into(tmp_path / "net", "the net", train, Silent(), ALONE, "change it so")
    assert calls == [True, False]


def test_a_failure_says_whose_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    def train(path: Path, resume: bool) -> None:
        write(path, "config.toml")
        raise TrainingFailed("the loss is not finite")

    with pytest.raises(TrainingFailed) as caught:
        prepare_into(tmp_path / "net", "the net", train, Silent(), ALONE, "change it so")
    assert caught.value.__notes__ == ["that is the net; change it so"]
    assert not list(tmp_path.glob("net*/"))

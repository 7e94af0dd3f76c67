"""The store of logits: what is written is there, whoever writes and whatever breaks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rkd.training import logit_store
from rkd.training.logit_store import LogitStore, answer_bytes

CLASSES, COUNT = 5, 40


def logits(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed))


def known(store: LogitStore, rows=range(COUNT)) -> list[int]:
    rows = np.array(rows)
    return np.delete(rows, store.read(rows)[1]).tolist()


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path: Path) -> LogitStore:
    return LogitStore(COUNT, CLASSES, 7, tmp_path / "deep" / "a" if request.param == "file" else None, pytest.fail)


def test_what_is_written_is_there_and_nothing_else(store: LogitStore) -> None:
    rows, values = np.array([7, 39, 0, 12]), logits(4)
    values[0] = torch.tensor([0.0, -0.0, 1e-45, -1e38, 3.0])
    assert known(store) == []
    store.write(rows, values)
    assert known(store) == [0, 7, 12, 39]
    assert torch.equal(store.read(rows)[0].view(torch.int32), values.view(torch.int32))


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path, rows = tmp_path / "a", np.array([1])
    store = LogitStore(3, CLASSES, 7, path, pytest.fail)
    store.write(rows, logits(1))
    good = path.read_bytes()
    for bit in range(answer_bytes(1, CLASSES) * 8, len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        assert known(store, rows) == []
    path.write_bytes(good)
    assert known(store, rows) == [1]
    assert known(LogitStore(3, CLASSES, 8, path, pytest.fail), rows) == [], "somebody else's"
    path.write_bytes(good[answer_bytes(1, CLASSES) :])
    assert known(store, range(3)) == [], "another row's"


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    one, other = (LogitStore(COUNT, CLASSES, 7, tmp_path / "a", pytest.fail) for _ in range(2))
    one.write(np.array([3, 4]), logits(2))
    assert torch.equal(other.read(np.array([3, 4]))[0], logits(2))


def test_a_file_that_is_cut_off_and_one_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a"
    store = LogitStore(COUNT, CLASSES, 7, path, pytest.fail)
    store.write(np.arange(4), logits(4))
    os.truncate(path, 2 * answer_bytes(1, CLASSES) + 9)
    assert known(store) == [0, 1]
    path.write_bytes(path.read_bytes() + os.urandom(5000))
    assert known(store) == [0, 1]


@pytest.mark.parametrize("what", ["a folder", "a link", "a pipe", "below a file"])
def test_a_place_that_is_no_file(what: str, tmp_path: Path) -> None:
    path, said = tmp_path / "a", []
    if what == "a folder":
        path.mkdir()
    elif what == "a link":
        (tmp_path / "secret").write_text("mine")
        path.symlink_to(tmp_path / "secret")
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text("")
        path = path / "b"
    store = LogitStore(COUNT, CLASSES, 7, path, said.append)
    store.write(np.array([0]), logits(1))
    assert known(store) == [] and len(said) == 1
    if what == "a link":
        assert (tmp_path / "secret").read_text() == "mine"


def test_a_disk_that_fails_is_told_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    store = LogitStore(COUNT, CLASSES, 7, tmp_path / "a", said.append)

    class Full:
        def seek(self, place: int) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    store._file = Full()  # type: ignore[assignment]
    for _ in range(2):
        store.write(np.array([0]), logits(1))
        assert known(store) == []
    assert said == ["No space left on device"]


def test_nothing_is_kept_on_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_store, "RESERVE", 2**62)
    said: list[str] = []
    store = LogitStore(COUNT, CLASSES, 7, tmp_path / "a", said.append)
    store.write(np.array([0]), logits(1))
    assert known(store) == [] and said == ["too little of the disk is free"] and not list(tmp_path.iterdir())

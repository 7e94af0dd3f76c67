"""What is kept comes back bit for bit, and what is not what was kept is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rkd.core.random import row_hash
from rkd.training import shelf as module
from rkd.training.shelf import SEAL, Answers, InFile, InMemory, Shelf, make_room, size_of

CLASSES, COUNT = 5, 40


def logits(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed))


IMAGES = row_hash(torch.arange(COUNT).float().unsqueeze(1))


@pytest.fixture(params=["memory", "file"])
def kept(request, tmp_path: Path) -> Answers:
    rows = InMemory(COUNT, CLASSES + SEAL)
    if request.param == "file":
        rows = InFile(tmp_path / "deep" / "a.answers", CLASSES + SEAL, pytest.fail)
    return Answers(rows, CLASSES, salt=7)


def test_what_is_written_is_there_and_nothing_else(kept: Answers) -> None:
    places, values = torch.tensor([7, 39, 0, 12]), logits(4)
    values[0] = torch.tensor([0.0, -0.0, 1e-45, -1e38, 3.0])
    assert not kept.read(places, IMAGES[places])[1].any()
    kept.write(places, IMAGES[places], values)
    everywhere = torch.arange(COUNT)
    found, there = kept.read(everywhere, IMAGES)
    assert there.nonzero().flatten().tolist() == [0, 7, 12, 39]
    assert torch.equal(found[places].view(torch.int32), values.view(torch.int32))
    kept.write(places[:1], IMAGES[:1], logits(1, 1))
    assert kept.read(places, IMAGES[places])[1].tolist() == [False, True, True, True], "another image's answer"


def test_every_flipped_bit_is_found() -> None:
    rows = InMemory(1, CLASSES + SEAL)
    kept, place = Answers(rows, CLASSES, salt=7), torch.tensor([0])
    kept.write(place, IMAGES[:1], logits(1))
    good = rows.read(place)
    for column in range(CLASSES + SEAL):
        for bit in range(32):
            bad = good.clone()
            bad[0, column] ^= -(2**31) if bit == 31 else 1 << bit
            rows.write(place, bad)
            assert not kept.read(place, IMAGES[:1])[1].any()
    rows.write(place, good)
    assert kept.read(place, IMAGES[:1])[1].all()
    assert not Answers(rows, CLASSES, salt=8).read(place, IMAGES[:1])[1].any(), "somebody else's"
    assert not kept.read(place, IMAGES[1:2])[1].any(), "another image"


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    one, other = (Answers(InFile(tmp_path / "a", CLASSES + SEAL, pytest.fail), CLASSES, 7) for _ in range(2))
    places = torch.tensor([3, 4])
    one.write(places, IMAGES[places], logits(2))
    assert torch.equal(other.read(places, IMAGES[places])[0], logits(2))


def test_a_file_that_is_cut_off_and_one_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a"
    kept = Answers(InFile(path, CLASSES + SEAL, pytest.fail), CLASSES, 7)
    places = torch.arange(4)
    kept.write(places, IMAGES[places], logits(4))
    os.truncate(path, 2 * 4 * (CLASSES + SEAL) + 9)
    assert kept.read(places, IMAGES[places])[1].tolist() == [True, True, False, False]
    path.write_bytes(path.read_bytes() + os.urandom(5000))
    assert kept.read(torch.arange(COUNT), IMAGES)[1].nonzero().flatten().tolist() == [0, 1]


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
    kept = Answers(InFile(path, CLASSES + SEAL, said.append), CLASSES, 7)
    kept.write(torch.tensor([0]), IMAGES[:1], logits(1))
    assert not kept.read(torch.tensor([0]), IMAGES[:1])[1].any()
    assert len(said) == 1
    if what == "a link":
        assert (tmp_path / "secret").read_text() == "mine"


def test_a_disk_that_fails_is_told_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    rows = InFile(tmp_path / "a", CLASSES + SEAL, said.append)

    class Full:
        def seek(self, place: int) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    rows._file = Full()  # type: ignore[assignment]
    kept, place = Answers(rows, CLASSES, 7), torch.tensor([0])
    for _ in range(2):
        kept.write(place, IMAGES[:1], logits(1))
        assert not kept.read(place, IMAGES[:1])[1].any()
    assert said == ["No space left on device"]


def test_older_files_make_room(tmp_path: Path) -> None:
    for number, name in enumerate(["old", "older", "mine", "new"]):
        path = tmp_path / f"{name}.answers"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number) if name != "older" else (1, 1))
    (tmp_path / "else").write_bytes(bytes(1000))
    make_room(tmp_path, 90, 400, {tmp_path / "mine.answers"})
    assert {path.name for path in tmp_path.iterdir()} == {"old.answers", "mine.answers", "new.answers", "else"}
    make_room(tmp_path, 250, 400, {tmp_path / "mine.answers"})
    assert {path.name for path in tmp_path.iterdir()} == {"mine.answers", "else"}


def test_little_in_memory_much_in_a_file_and_nothing_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shelf = Shelf(10**9, tmp_path / "cache", said.append)
    assert isinstance(shelf.rows("teacher robust", 1, COUNT, CLASSES), InMemory) and said == []
    monkeypatch.setattr(module, "IN_MEMORY", size_of(COUNT, CLASSES) - 1)
    assert isinstance(shelf.rows("teacher robust", 1, COUNT, CLASSES), InFile)
    assert "teacher robust: answers to clean images are kept in" in said[0]
    monkeypatch.setattr(module, "RESERVE", 2**62)
    rows = shelf.rows("teacher robust", 2, COUNT, CLASSES)
    rows.write(torch.tensor([1]), torch.ones(1, CLASSES + SEAL, dtype=torch.int32))
    assert not rows.read(torch.tensor([1])).any() and "too little of the disk" in said[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1

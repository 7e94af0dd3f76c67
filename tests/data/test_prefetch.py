"""Images on their way: whichever way they come, the same ones."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from torch import Tensor

from rkd.core.errors import DataError, RkdError
from rkd.data import prefetch
from rkd.data.dataset import ArraySplit, Subset
from rkd.data.loader import Loader
from rkd.data.prefetch import AHEAD, Prefetcher

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
LABELS = torch.arange(40) % 4


class OnDisk:
    """A split that reads: not in memory, and it tells who read what."""

    def __init__(self, bad: int | None = None) -> None:
        self.labels = LABELS
        self.bad = bad
        self.read: list[tuple[int, bool]] = []

    def __len__(self) -> int:
        return 40

    def images(self, index: Tensor) -> Tensor:
        if self.bad is not None and self.bad in index.tolist():
            raise DataError("image 3 cannot be read")
        self.read.append((int(index[0]), threading.current_thread() is threading.main_thread()))
        return IMAGES[index].float() / 255


class AsBytes(OnDisk):
    def pixels(self, index: Tensor) -> Tensor:
        self.images(index)
        return IMAGES[index]


def batches(split, workers: int = 0) -> list[Tensor]:
    return [batch.x for batch in Loader(split, 8, seed=3, workers=workers).batches(1)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [OnDisk, AsBytes])
def test_the_same_batches_whichever_way(kind, workers: int) -> None:
    expected = batches(ArraySplit(IMAGES, LABELS))
    before = torch.get_rng_state()
    found = batches(kind(), workers)
    assert len(found) == len(expected) == 5
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


class Deadly(OnDisk):
    """The process that reads image 3 is killed, as by a system that is out of memory."""

    def images(self, index: Tensor) -> Tensor:
        if 3 in index.tolist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(index)


@pytest.mark.slow
def test_a_reader_that_dies_is_told_of() -> None:
    with pytest.raises(RkdError, match=r"a process that reads images died .*--resume.*data\.workers"):
        batches(Deadly(), workers=2)


class Signalled(OnDisk):
    """The processes that read images get the signals that reach a whole group of processes."""

    def images(self, index: Tensor) -> Tensor:
        if 3 in index.tolist():
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(2):  # torchrun's agent sends two
                os.kill(os.getpid(), signal.SIGTERM)
        return super().images(index)


@pytest.mark.slow
def test_readers_outlive_signals_to_the_group() -> None:
    """Their training is to end its step and save: it lost all since the last checkpoint."""
    expected = batches(OnDisk())
    found = batches(Signalled(), workers=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and len(found) == len(expected)


@pytest.mark.slow
def test_readers_outlive_signals_while_they_start() -> None:
    signalled = [True]

    def now() -> None:
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)

    os.register_at_fork(after_in_child=now)
    try:
        found = batches(OnDisk(), workers=2)
    finally:
        signalled.clear()  # nothing takes the function away again
    assert len(found) == len(batches(OnDisk()))


def test_a_thread_reads_ahead_but_not_far() -> None:
    split = OnDisk()
    stream = Prefetcher(split, CPU).batches(torch.arange(40).split(4))
    next(stream)
    stream.close()  # what was begun ends, nothing more is read
    assert 1 <= len(split.read) <= 1 + AHEAD
    assert not any(main for _, main in split.read)


def test_what_a_reader_raises_arrives() -> None:
    with pytest.raises(DataError, match="image 3 cannot be read"):
        list(Prefetcher(OnDisk(bad=30), CPU).batches(torch.arange(40).split(4)))


def test_images_in_memory_are_not_read_ahead() -> None:
    assert Prefetcher(Subset(ArraySplit(IMAGES, LABELS), torch.arange(9)), CPU).direct
    assert not Prefetcher(Subset(OnDisk(), torch.arange(9)), CPU).direct


def test_images_that_fit_live_on_the_device_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device than the CPU: `meta` has the shapes of one, and no memory."""
    meta = torch.device("meta")
    split = Subset(ArraySplit(IMAGES, LABELS), torch.arange(10))
    there = Prefetcher(split, meta)
    assert there.direct and there._kept is not None
    assert (there._kept.dtype, there._kept.device.type, len(there._kept)) == (torch.uint8, "meta", 10)
    (x,) = there.batches([torch.tensor([3, 1])])
    assert (x.dtype, x.device.type, tuple(x.shape)) == (torch.float32, "meta", (2, 3, 8, 8))
    monkeypatch.setattr(prefetch, "free_bytes", lambda device: 10 * 3 * 64 / prefetch.SHARE - 1)
    assert not Prefetcher(split, meta).direct

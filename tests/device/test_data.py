"""Batches on a device that is no CPU: kept there, or read ahead; the same ones either way, and no host that waits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rkd.data import prefetch
from rkd.data.dataset import ArraySplit
from rkd.data.loader import Loader
from rkd.testing import tiny_batch

from ..pretend_device import host_waits
from .runs import CATALOG, CPU

BATCH = tiny_batch(20)
PIXELS = ArraySplit((BATCH.x * 255).to(torch.uint8), BATCH.y)


class Files:
    """The same images behind a reader."""

    labels = BATCH.y

    def __len__(self) -> int:
        return len(PIXELS)

    def images(self, index: Tensor) -> Tensor:
        return PIXELS.images(index)


@pytest.mark.parametrize("way", ["kept", "too large to be kept", "a thread", "a process"])
def test_the_same_batches(way: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "too large to be kept":
        monkeypatch.setattr(prefetch, "free_bytes", lambda device: 0)
    split = Files() if way in ("a thread", "a process") else PIXELS
    augments = [CATALOG.create("augment", name) for name in ("crop", "flip")]
    expected = list(Loader(PIXELS, 8, 0, augments, CPU).batches(1))
    loader = Loader(split, 8, 0, augments, device, workers=int(way == "a process"))
    with host_waits() as waits:
        found = list(loader.batches(1))
    assert waits == []
    for one, other in zip(found, expected, strict=True):
        assert one.x.device == one.y.device == one.index.device == device
        for name in ("x", "y", "index"):
            assert torch.equal(getattr(one, name).cpu(), getattr(other, name)), name

"""check_dataset, check_augment: sound data and what is wrong with other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rkd import testing
from rkd.core.types import Batch
from rkd.data.dataset import ArraySplit
from rkd.testing import tiny_dataset

from .conftest import says

COUNT = iter(range(1, 1000))


def test_datasets() -> None:
    testing.check_dataset(tiny_dataset())
    for change, word in [
        ({"fingerprint": ""}, "fingerprint"),
        ({"std": (0.1, 0.1, 0.0)}, "std must be positive"),
        ({"classes": ("a", "b", "c", "c")}, "share a name"),
        ({"defaults": {"epoch": 3}}, "no such setting"),
        ({"teachers": {"robust": {}}}, "names no model"),
        ({"teachers": {"robust": {"model": "x", "recipe": {"epochs": 0}}}}, "no valid settings"),
        ({"shape": (3, 9, 8)}, "float32 (4, 3, 9, 8)"),
    ]:
        broken = dataclasses.replace(tiny_dataset(), **change)
        says(lambda broken=broken: testing.check_dataset(broken), word)


def test_splits() -> None:
    good = tiny_dataset().train

    class Split(ArraySplit):
        def __init__(self, images: Callable[[Tensor], Tensor]) -> None:
            self.labels = good.labels
            self._change = images

        def __len__(self) -> int:
            return len(good)

        def images(self, index: Tensor) -> Tensor:
            return self._change(good.images(index))

    for change, word in [
        (lambda x: x.double(), "float32"),
        (lambda x: x / (1 + x.mean(0)), "depends on which others"),
        (lambda x: x + 0 * torch.rand(1), "random state"),
    ]:
        broken = dataclasses.replace(tiny_dataset(), train=Split(change))
        says(lambda broken=broken: testing.check_dataset(broken), word)


@pytest.mark.parametrize(
    ("augment", "word"),
    [
        (lambda batch, noise: dataclasses.replace(batch, x=batch.x.flip(-1)), ""),
        (lambda batch, noise: Batch(batch.x.mul_(0.5), batch.y, batch.index), "must return a new batch"),
        (lambda batch, noise: batch.x, "must return a Batch"),
        (lambda batch, noise: batch.select(torch.arange(4)), "keep the samples"),
        (lambda batch, noise: dataclasses.replace(batch, x=batch.x[..., 1:]), "must stay float32"),
        (lambda batch, noise: dataclasses.replace(batch, x=torch.rand_like(batch.x)), "random state"),
        (lambda batch, noise: dataclasses.replace(batch, y=batch.y.float()), "int64"),
        (lambda batch, noise: dataclasses.replace(batch, y=torch.ones(8, 4)), "probabilities"),
        (lambda batch, noise: dataclasses.replace(batch, views={"weak": batch.x.double()}), "weak must stay float32"),
        (lambda batch, noise: dataclasses.replace(batch, x=batch.x / next(COUNT)), "the second time"),
        (lambda batch, noise: dataclasses.replace(batch, x=(batch.x + batch.x.flip(0)) / 2), "mixes = True"),
    ],
)
def test_augments(augment, word: str) -> None:
    if word:
        says(lambda: testing.check_augment(augment), word)
    else:
        testing.check_augment(augment)


class Half:
    """Halves images, or not: two versions, of which it says what `says` makes of them."""

    def __init__(self, says, count=2) -> None:
        self.says, self.count = says, count

    def __call__(self, batch, noise):
        return dataclasses.replace(batch, x=torch.where(self.draw(noise).view(-1, 1, 1, 1), batch.x / 2, batch.x))

    def variants(self, shape):
        return self.count

    def variant(self, noise, shape):
        return self.says(self.draw(noise))

    def draw(self, noise):
        return noise.uniform(()) < 0.5


@pytest.mark.parametrize(
    ("augment", "word"),
    [
        (Half(lambda half: half.long()), ""),
        (Half(lambda half: half.long(), 0), "a number from 1 on"),
        (Half(lambda half: half.long(), 1), "from 0 to 0"),
        (Half(lambda half: half.float()), "must be int64"),
        (Half(lambda half: half.long()[:5]), "must be int64"),
        (Half(lambda half: half.long() * 0), "version 0 of one image is not one image"),
    ],
)
def test_versions_of_images(augment, word: str) -> None:
    if word:
        says(lambda: testing.check_augment(augment), word)
    else:
        testing.check_augment(augment)

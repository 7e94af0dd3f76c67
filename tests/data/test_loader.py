"""Batches that follow from (seed, epoch, position)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rkd.core.errors import Refused
from rkd.core.random import Noise
from rkd.core.types import Batch
from rkd.data.dataset import ArraySplit, MixedSplit
from rkd.data.loader import Loader
from rkd.testing import tiny_batch, untouched


def split(count: int = 23) -> ArraySplit:
    return ArraySplit(tiny_batch(count).x, torch.arange(count) % 4)


def numbers(loader: Loader, epoch: int) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader.batches(epoch)]


def test_an_epoch_holds_every_image_once() -> None:
    batches = numbers(Loader(split(), 8, seed=0), 0)
    assert [len(b) for b in batches] == [8, 8, 7]
    assert sorted(number for batch in batches for number in batch) == list(range(23))


def test_the_order_follows_from_seed_and_epoch() -> None:
    loader = Loader(split(), 8, seed=0)
    assert numbers(loader, 3) == numbers(Loader(split(), 8, seed=0), 3)
    assert numbers(loader, 3) == numbers(loader, 3)
    assert numbers(loader, 3) != numbers(loader, 4)
    assert numbers(loader, 3) != numbers(Loader(split(), 8, seed=1), 3)


@pytest.mark.parametrize(("count", "sizes"), [(17, [8, 8]), (18, [8, 8, 2]), (16, [8, 8]), (3, [3])])
def test_a_last_batch_of_one_is_left_out(count: int, sizes: list[int]) -> None:
    loader = Loader(split(count), 8, seed=0)
    assert [len(b) for b in loader.batches(0)] == sizes
    assert len(loader) == len(sizes)


def test_batches_hold_the_images_of_their_index() -> None:
    data = split()
    for batch in Loader(data, 8, seed=0).batches(0):
        assert torch.equal(batch.x, data.images(batch.index))
        assert torch.equal(batch.y, data.labels[batch.index])


def test_batches_of_a_mixed_split() -> None:
    """As many as of the real images, each with its share of generated ones, whichever way they are read."""
    data = MixedSplit(split(), split(50), 0.5)
    loader = Loader(data, 8, seed=0)
    batches = list(loader.batches(2))
    assert [len(b) for b in batches] == [loader.size(n) for n in range(len(loader))] == [8, 8, 7]
    for batch in batches:
        assert int((batch.index >= 23).sum()) == len(batch) // 2
        assert torch.equal(batch.x, data.images(batch.index)) and torch.equal(batch.y, data.labels[batch.index])
    assert torch.equal(next(loader.batches(2, start=1)).index, batches[1].index)


@dataclasses.dataclass
class Jitter:
    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        x = (batch.x + noise.uniform(batch.x.shape[1:], 0, 0.2)).clamp(0, 1)
        return dataclasses.replace(batch, x=x)


@dataclasses.dataclass
class Marked:
    """Adds its number to the images of the epochs in which it acts."""

    number: float
    since: float = 0.0
    until: float = 1.0

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        return dataclasses.replace(batch, x=batch.x + self.number)


@pytest.mark.parametrize(("epochs", "at"), [(4, 2), (300, 100), (30, 29)])
def test_one_augmentation_takes_over_from_another(epochs: int, at: int) -> None:
    data = split()
    augments = [Marked(1, until=at / epochs), Marked(2, since=at / epochs), Marked(4)]
    loader = Loader(data, 8, seed=0, augments=augments, epochs=epochs)
    for epoch, added in ((0, 5), (at - 1, 5), (at, 6), (epochs - 1, 6), (epochs, 6)):
        batch = loader.batch(torch.arange(3), epoch)
        assert torch.allclose(batch.x, data.images(torch.arange(3)) + added)


def test_who_acts_later_gets_the_same_noise() -> None:
    """Its place among the augmentations counts, not who acts before it."""
    alone = Loader(split(), 8, seed=0, augments=[Marked(0), Jitter()], epochs=4)
    after = Loader(split(), 8, seed=0, augments=[Marked(9, until=0.5), Jitter()], epochs=4)
    assert torch.equal(alone.batch(torch.arange(3), 2).x, after.batch(torch.arange(3), 2).x)


@pytest.mark.parametrize(("since", "until"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.7, 0.2)])
def test_a_part_of_the_training_that_is_none(since: float, until: float) -> None:
    loader = Loader(split(), 8, seed=0, augments=[Marked(1, since, until)], epochs=4)
    with pytest.raises(Refused, match="Marked acts from since"):
        loader.batch(torch.arange(3), 0)


def test_augmentations_follow_from_seed_epoch_place_and_image() -> None:
    data = ArraySplit(0.5 * tiny_batch(23).x, torch.zeros(23))  # room for two jitters

    def image(number: int, epoch: int = 0, size: int = 8, seed: int = 0, augments: int = 1) -> torch.Tensor:
        loader = Loader(data, size, seed, [Jitter()] * augments)
        return next(b.x[b.index == number] for b in loader.batches(epoch) if number in b.index)

    assert torch.equal(image(5), image(5, size=4)), "the batch does not matter"
    assert not torch.equal(image(5), image(5, epoch=1))
    assert not torch.equal(image(5), image(5, seed=1))
    twice = image(5, augments=2) - image(5)
    assert not torch.allclose(twice, image(5) - data.images(torch.tensor([5])), atol=1e-3), "each place its own noise"


def test_loading_touches_no_random_state() -> None:
    with untouched():
        for batch in Loader(split(), 8, 0, [Jitter()]).batches(0):
            assert batch.x.dtype == torch.float32

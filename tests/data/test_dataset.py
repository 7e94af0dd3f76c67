"""Batches that follow from (seed, epoch, position)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rkd.core.errors import DataError
from rkd.core.random import Noise
from rkd.core.types import Batch
from rkd.data.dataset import ArraySplit, Loader, Split, Subset, check_images, fetch, hold_out
from rkd.testing import tiny_batch, tiny_dataset, untouched


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


@dataclasses.dataclass
class Jitter:
    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        x = (batch.x + noise.uniform(batch.x.shape[1:], 0, 0.2)).clamp(0, 1)
        return dataclasses.replace(batch, x=x)


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


def test_bytes_stay_bytes_until_they_are_asked_for() -> None:
    images = torch.randint(0, 256, (5, 1, 2, 2), dtype=torch.uint8)
    data = ArraySplit(images, torch.arange(5))
    assert torch.equal(data.images(torch.tensor([4, 1])), images[[4, 1]].float() / 255)
    assert data._images.dtype == torch.uint8
    assert isinstance(data, Split)


def test_hold_out_is_a_function_of_the_seed() -> None:
    data = split(40)
    (train, held), (again, same), (_, other) = hold_out(data, 0.25, 7), hold_out(data, 0.25, 7), hold_out(data, 0.25, 8)
    assert torch.equal(held.positions, same.positions)
    assert torch.equal(train.positions, again.positions)
    assert not torch.equal(held.positions, other.positions)
    assert (len(train), len(held)) == (30, 10)
    assert sorted([*train.positions.tolist(), *held.positions.tolist()]) == list(range(40))
    assert torch.equal(held.images(torch.tensor([3])), data.images(held.positions[3:4]))
    assert torch.equal(held.labels, data.labels[held.positions])


def test_hold_out_of_nothing_and_of_everything() -> None:
    data = split(10)
    assert hold_out(data, 0.0, 0) == (data, None)
    assert hold_out(data, 0.01, 0) == (data, None)
    with pytest.raises(DataError, match="leaves none"):
        hold_out(data, 0.99, 0)


def test_fetch() -> None:
    data = Subset(split(), torch.tensor([3, 5, 7]))
    batch = fetch(data, torch.tensor([2, 0]))
    assert torch.equal(batch.x, split().images(torch.tensor([7, 3])))
    assert batch.index.tolist() == [2, 0]


def test_a_part_of_a_batch() -> None:
    batch = dataclasses.replace(tiny_batch(), views={"weak": 1 - tiny_batch().x})
    part = batch.select(torch.tensor([4, 1]))
    assert len(part) == 2
    for name in ("x", "y", "index"):
        assert torch.equal(getattr(batch, name)[[4, 1]], getattr(part, name))
    assert torch.equal(batch.views["weak"][[4, 1]], part.views["weak"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.001, 1.001, 200.0])
def test_images_that_are_none(bad: float) -> None:
    x = tiny_batch().x.clone()
    x[0, 0, 0, 0] = bad
    for check in (check_images, lambda images: ArraySplit(images, torch.zeros(8))):
        with pytest.raises(DataError, match="images"):
            check(x)


def test_images_of_rounding_errors_are_fine() -> None:
    check_images(torch.tensor([[-1e-7, 1 + 1e-7]]))
    check_images(torch.zeros(0, 3))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"\(N, C, H, W\)"):
        ArraySplit(torch.zeros(3, 8, 8), torch.zeros(3))
    with pytest.raises(DataError, match="3 images but 4 labels"):
        ArraySplit(torch.zeros(3, 1, 8, 8), torch.zeros(4))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"classes": ("a", "b")}, "label of data set 'tiny' is 3, but there are 2 classes"),
        ({"mean": (0.5,)}, "3 channels, but 1 means"),
        ({"test": ArraySplit(torch.zeros(0, 3, 8, 8), torch.zeros(0))}, "test part of data set 'tiny' is empty"),
        ({"train": ArraySplit(torch.zeros(2, 3, 8, 8), torch.tensor([0, -1]))}, "training label of .* is -1"),
    ],
)
def test_data_sets_that_cannot_be(change: dict, word: str) -> None:
    with pytest.raises(DataError, match=word):
        dataclasses.replace(tiny_dataset(), **change)

"""Data sets: images and labels that are sound, or a clear error."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rkd.core.errors import DataError
from rkd.data.dataset import (
    ArraySplit,
    MixedSplit,
    Split,
    StoredSplit,
    Subset,
    check_images,
    fetch,
    hold_out,
    part_of,
    real_images,
)
from rkd.testing import tiny_batch, tiny_dataset


def split(count: int = 23) -> ArraySplit:
    return ArraySplit(tiny_batch(count).x, torch.arange(count) % 4)


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


def mixed(real: int = 23, generated: int = 40, fraction: float = 0.7) -> MixedSplit:
    images = torch.arange(generated, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *tiny_batch(1).x.shape[1:])
    return MixedSplit(split(real), ArraySplit(images.contiguous(), torch.arange(generated) % 3), fraction)


def test_a_mixed_split_has_the_real_images_and_behind_them_the_generated_ones() -> None:
    data = mixed()
    assert isinstance(data, StoredSplit) and len(data) == 63
    index = torch.tensor([62, 3, 23, 0, 3])
    images = data.images(index)
    assert torch.equal(images[[1, 3, 4]], data.real.images(torch.tensor([3, 0, 3])))
    assert torch.equal(images[[0, 2]], data.generated.images(torch.tensor([39, 0])))
    assert torch.equal(data.labels[index], torch.tensor([39 % 3, 3, 0, 0, 3]))
    assert data.images(index[:0]).shape == (0, *images.shape[1:])
    bytes_ = ArraySplit(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    assert MixedSplit(bytes_, bytes_, 0.5).pixels(torch.tensor([7, 1])).dtype == torch.uint8


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 1.0])
def test_each_batch_of_a_mixed_epoch_has_its_share(fraction: float) -> None:
    data = mixed(fraction=fraction)
    order = data.epoch(10, seed=3)
    assert torch.equal(order, data.epoch(10, seed=3)) and not torch.equal(order, data.epoch(10, seed=4))
    assert len(order) == 23
    for batch, size in zip(order.split(10), (10, 10, 3), strict=True):
        assert int((batch >= 23).sum()) == int(fraction * size + 1e-9)
    assert len(order.unique()) == 23, "none comes twice while there are enough"
    if 0 < fraction < 1:
        firsts = torch.cat([data.epoch(10, seed)[:5] for seed in range(40)])
        assert 0.5 * fraction < float((firsts >= 23).float().mean()) < 1.5 * fraction, "they stand anywhere in a batch"


def test_too_few_generated_images_come_again() -> None:
    order = mixed(generated=5).epoch(10, seed=0)
    made = order[order >= 23] - 23
    assert sorted(made.bincount(minlength=5).tolist()) == [3, 3, 3, 3, 4]


def test_a_part_of_the_images_has_of_each_class_its_share() -> None:
    """Within one image, one of each class at least, and a larger part has the images of a smaller one."""
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])[torch.randperm(100)]
    split = ArraySplit(torch.rand(100, 1, 2, 2), labels)
    before: set[int] = set()
    for count in (4, 5, 20, 50, 99, 100):
        part = part_of(split, count)
        assert isinstance(part, Subset) and len(part) == count
        found = torch.bincount(part.labels, minlength=4)
        shares = count * torch.bincount(labels) / 100
        assert bool((found >= 1).all()) and bool((found - shares).abs().max() <= 2), (count, found)
        positions = set(part.positions.tolist())
        assert before <= positions and len(positions) == count
        before = positions
    assert torch.equal(part_of(split, 20).labels, part_of(split, 20).labels)
    mixed = part_of(MixedSplit(split, split, 0.5), 10)
    assert isinstance(mixed, MixedSplit) and real_images(mixed) == 10 and len(mixed.generated) == 100


def test_real_images_alone_are_held_out() -> None:
    data = mixed(40)
    train, held = hold_out(data, 0.25, 7)
    plain, same = hold_out(data.real, 0.25, 7)
    assert torch.equal(held.positions, same.positions)
    assert isinstance(train, MixedSplit) and torch.equal(train.real.positions, plain.positions)
    assert (len(train), train.fraction) == (30 + 40, 0.7)


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

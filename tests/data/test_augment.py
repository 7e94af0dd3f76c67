"""Versions of images: equal numbers are equal images, numbers follow from seed, epoch and image, or it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rkd.core.errors import Refused
from rkd.data.augment import Variants, expected_repeats
from rkd.data.dataset import ArraySplit
from rkd.data.loader import Loader
from rkd.plugins.augments.crop import Crop
from rkd.plugins.augments.cutout import Cutout
from rkd.plugins.augments.flip import Flip
from rkd.plugins.augments.mixup import Mixup

SHAPE = (3, 9, 12)


def images(count: int = 64) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(count))


def loader(split: ArraySplit, augments, seed: int = 3) -> Loader:
    made = Loader(split, len(split), seed, augments)
    made.variants = Variants.of(augments, SHAPE)
    return made


@pytest.mark.parametrize(
    ("augments", "count"),
    [
        ([], 1),
        ([Flip()], 2),
        ([Flip(p=0.0)], 1),
        ([Flip(p=1.0)], 1),
        ([Crop(padding=1)], 9),
        ([Crop(padding=0)], 1),
        ([Cutout(length=4)], 108),
        ([Crop(padding=1), Flip()], 18),
        ([Flip(), Crop(padding=1), Flip(p=0.3)], 36),
    ],
)
def test_equal_versions_are_equal_images_and_others_are_not(augments, count) -> None:
    """Of one image at many positions: as many different images as versions are said to be drawn, in two epochs."""
    split = ArraySplit(images(1).expand(3000, *SHAPE), torch.zeros(3000))
    made = loader(split, augments)
    assert made.variants.count == count
    batches = [made.batch(torch.arange(3000), epoch) for epoch in (0, 1)]
    variant = torch.cat([batch.version - batch.index * count for batch in batches])
    assert variant.unique().tolist() == list(range(count))
    _, image = torch.cat([batch.x for batch in batches]).flatten(1).unique(dim=0, return_inverse=True)
    # (Versions may be the same: two flips, a square beyond the edge.)
    for which in variant.unique():
        assert len(image[variant == which].unique()) == 1
    if len(augments) < 3:
        assert len(image.unique()) == count


def test_the_order_of_augmentations_is_part_of_the_version() -> None:
    split = ArraySplit(images(), torch.zeros(64))
    orders = [Crop(padding=2), Flip()], [Flip(), Crop(padding=2)]
    one, other = (loader(split, augments).batch(torch.arange(64), 0).version for augments in orders)
    assert not torch.equal(one, other)


def test_a_version_follows_from_seed_epoch_and_image() -> None:
    split = ArraySplit(images(), torch.zeros(64))
    augments = [Crop(padding=2), Flip()]
    made = loader(split, augments)
    whole = made.batch(torch.arange(64), 2).version
    assert torch.equal(made.batch(torch.tensor([40, 3, 17]), 2).version, whole[[40, 3, 17]])
    assert not torch.equal(made.batch(torch.arange(64), 1).version, whole)
    assert not torch.equal(loader(split, augments, seed=4).batch(torch.arange(64), 2).version, whole)


def test_it_goes_with_the_samples_of_a_batch() -> None:
    batch = loader(ArraySplit(images(), torch.zeros(64)), [Flip()]).batch(torch.arange(64), 0)
    mask = batch.index % 3 == 0
    for keep in (mask, mask.nonzero().flatten(), slice(0, 64, 3)):
        assert torch.equal(batch.select(keep).version, batch.version[mask])


class Odd(Flip):
    """Claims a number of versions, and numbers them as `says` does."""

    def __init__(self, count, says=lambda variant: variant) -> None:
        super().__init__()
        self.count, self.says = count, says

    def variants(self, shape):
        return self.count

    def variant(self, noise, shape):
        return self.says((noise.uniform(()) < self.p).long())


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (Mixup(classes=10), "Mixup blends images"),
        (Flip(until=0.5), "Flip acts during a part of the training"),
        (lambda batch, noise: batch, "does not say how many"),
        (Odd(0), "Odd says that it makes 0"),
        (Odd(True), "Odd says that it makes True"),
        (Odd(1), "made version 1 of an image, and numbers go from 0 to 0"),
        (Odd(2, lambda variant: variant - 1), "made version -1 of an image"),
        (Odd(2, torch.Tensor.float), "must be int64"),
        (Odd(2, lambda variant: variant[:5]), "must be int64"),
        (Odd(2, torch.zeros_like), "version 0 of one image is not one image"),
    ],
)
def test_versions_without_number_and_wrong_numbers(augment, says) -> None:
    with pytest.raises(Refused, match=says):
        Variants.of([Flip(), augment], SHAPE)


def test_numbers_that_leave_their_range_later() -> None:
    augment = Odd(2)
    made = loader(ArraySplit(images(), torch.zeros(64)), [augment])
    augment.says = lambda variant: variant + 1
    with pytest.raises(Refused, match="from 0 to 1; with --set teacher_cache=off"):
        made.batch(torch.arange(64), 0)


def test_images_alone_decide() -> None:
    """An augmentation that makes views, or changes labels, has one version."""

    class View:
        def __call__(self, batch, noise):
            return replace(batch, views={"weak": batch.x.flip(-1)})

        def variants(self, shape):
            return 1

        def variant(self, noise, shape):
            return torch.zeros_like(noise.index)

    assert Variants.of([View()], SHAPE).count == 1


def test_how_many_samples_come_again() -> None:
    """Against drawing: 18 versions in 25 epochs."""
    draws = torch.randint(0, 18, (4000, 25), generator=torch.Generator().manual_seed(0))
    different = sum(len(set(row)) for row in draws.tolist()) / 4000
    assert abs(expected_repeats(18, 25) - (1 - different / 25)) < 0.005
    assert expected_repeats(1, 4) == 0.75
    assert expected_repeats(162, 1) == pytest.approx(0)

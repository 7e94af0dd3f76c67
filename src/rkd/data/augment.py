"""What an augmentation implements, and the versions of an image that augmentations make, where they are finitely many.

A crop with padding 4 makes 81, a flip 2, both together 162: teachers' answers to these can be cached
(`training.teacher_cache`). An augmentation that does not say so, or that blends samples, makes versions without number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import Refused
from ..core.random import Noise
from ..core.traits import declared
from ..core.types import Batch, Shape

DRAWS = 4096
"""Samples whose variant numbers are drawn to find some that are equal."""
PAIRS = 16
"""Pairs of equal numbers whose images are compared."""


@dataclass(frozen=True, slots=True)
class AugmentTraits:
    """What an augmentation may declare, each as an attribute of its own."""

    mixes: bool = False
    """It blends samples, and is given whole batches also where several processes share them."""
    since: float = 0.0
    until: float = 1.0
    """The part of the training, in [0, 1], during which it acts: in epochs that begin from `since` on and before
    `until`."""


@runtime_checkable
class Augment(Protocol):
    """A change of whole training batches: new images, further views, or soft labels (`batch.y (B, K)`).

    Every random choice comes from `noise`; images stay float32 in [0, 1] and keep their shape. What becomes of a
    sample follows from that sample alone; an augmentation that blends samples says `mixes = True` among its class
    attributes, and is given whole batches also where several processes share them.
    """

    def __call__(self, batch: Batch, noise: Noise) -> Batch: ...


@runtime_checkable
class FiniteAugment(Augment, Protocol):
    """An augmentation that makes finitely many versions of an image, and says which: teachers' answers to them can
    then be kept. Nothing has to be finite; what changes labels or makes views alone has one version.

    @dataclass
    class Upside:
        def __call__(self, batch, noise):
            down = self.variant(noise, batch.x.shape[1:]).view(-1, 1, 1, 1) == 1
            return replace(batch, x=batch.x.flip(-2).where(down, batch.x))
        def variants(self, shape):
            return 2
        def variant(self, noise, shape):
            return (noise.uniform(()) < 0.5).long()
    """

    def variants(self, shape: Shape) -> int:
        """How many versions of an image of `shape` there are."""

    def variant(self, noise: Noise, shape: Shape) -> Tensor:
        """Which of them, `(B,)` int64 from 0 on, `__call__` makes of each sample with the same noise. Samples of equal
        images and equal numbers become equal images."""


@dataclass(frozen=True, slots=True)
class Variants:
    """The versions that `augments`, one after another, make of an image of `shape`."""

    augments: tuple[FiniteAugment, ...]
    shape: Shape
    counts: tuple[int, ...]

    @classmethod
    def of(cls, augments: Sequence[Augment], shape: Shape) -> Variants:
        """Raises Refused for an augmentation that makes versions without number, or numbers them wrongly."""
        counts = tuple(_checked_count(augment, shape) for augment in augments)
        return cls(cast("tuple[FiniteAugment, ...]", tuple(augments)), shape, counts)

    @property
    def count(self) -> int:
        """How many versions of an image there are."""
        return math.prod(self.counts)

    @property
    def names(self) -> tuple[tuple[str, int], ...]:
        """The augmentations' classes, each with the number of its versions."""
        return tuple((type(augment).__name__, count) for augment, count in zip(self.augments, self.counts, strict=True))

    def versions(self, noises: Sequence[Noise], index: Tensor) -> Tensor:
        """A number `(B,)` int64 for each pair of image and version: `index * count + variant`.

        `noises` are fresh ones with the keys that the augmentations get, and like `index (B,)` on the CPU, so that
        nobody waits for a GPU. Raises Refused for an augmentation whose numbers leave their range.
        """
        number = index
        for augment, count, noise in zip(self.augments, self.counts, noises, strict=True):
            variant = augment.variant(noise, self.shape)
            _check_range(augment, variant, count)
            number = number * count + variant
        return number


def acts(augment: Augment, epoch: int, epochs: int) -> bool:
    """Whether it acts in this epoch of so many, by its `since` and `until`. Raises Refused for a part that is none."""
    traits = declared(augment, AugmentTraits)
    if not 0 <= traits.since < traits.until <= 1:
        raise Refused(
            f"{type(augment).__name__} acts from since = {traits.since:g} until {traits.until:g} of the training; "
            "0 <= since < until <= 1 is needed"
        )
    # A hair of slack: 0.29 of 100 epochs are 28.999999999999996.
    begun, ended = epoch >= traits.since * epochs - 1e-6, epoch >= traits.until * epochs - 1e-6
    return begun and (traits.until == 1 or not ended)


def expected_repeats(variants: int, epochs: int) -> float:
    """The share of a training's samples that it has met before, with so many equally likely versions of each image.

    Of n versions drawn e times, n (1 - (1 - 1/n)^e) different ones are expected. Versions that are not equally likely
    come again more often.
    """
    return 1 - variants * (1 - (1 - 1 / variants) ** epochs) / epochs


def _check_numbers(augment: FiniteAugment, count: int, shape: Shape) -> None:
    """Raise Refused unless samples with equal images and equal variant numbers become equal images, as far as a few
    draws tell."""
    name = type(augment).__name__
    index = torch.arange(DRAWS)
    variant = augment.variant(Noise(0, index), shape)
    if variant.dtype != torch.int64 or tuple(variant.shape) != (DRAWS,):
        raise Refused(f"{name}.variant must be int64 (B,), got {variant.dtype} {tuple(variant.shape)}")
    _check_range(augment, variant, count)
    first: dict[int, int] = {}
    pairs = [(first[v], i) for i, v in enumerate(variant.tolist()) if first.setdefault(v, i) != i][:PAIRS]
    drawn = torch.tensor(pairs, dtype=torch.int64).flatten()
    image = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    batch = Batch(image.expand(len(drawn), *shape).contiguous(), torch.zeros_like(drawn), drawn)
    made = augment(batch, Noise(0, drawn)).x.unflatten(0, (-1, 2))
    for (_, sample), (one, other) in zip(pairs, made, strict=True):
        if not torch.equal(one, other):
            raise Refused(f"{name} numbers wrongly: version {int(variant[sample])} of one image is not one image")


def _checked_count(augment: Augment, shape: Shape) -> int:
    name = type(augment).__name__
    traits = declared(augment, AugmentTraits)
    if traits.mixes:
        raise Refused(f"{name} blends images, so that no two versions are equal")
    if (traits.since, traits.until) != (0, 1):
        raise Refused(f"{name} acts during a part of the training, and else leaves images as they are")
    if not isinstance(augment, FiniteAugment):
        raise Refused(f"{name} does not say how many versions of an image it makes (variants, variant)")
    count = augment.variants(shape)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise Refused(f"{name} says that it makes {count!r} versions of an image; expected a number from 1 on")
    _check_numbers(augment, count, shape)
    return count


def _check_range(augment: FiniteAugment, variant: Tensor, count: int) -> None:
    numbers = variant.numpy()
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        raise Refused(
            f"{type(augment).__name__} says that it made version {outside[0]} of an image, and numbers go from 0 to "
            f"{count - 1}; with --set teacher_cache=off nobody asks it"
        )

"""Versions of an image that an augmentation can make, where they are finitely many.

A crop with padding 4 makes 81, a flip 2, both together 162: a teacher's answers to these can be kept (`remember`). An
augmentation says so by two methods of its own (`rkd.data.loader.FiniteAugment`); one that does not, or that blends
samples, has versions without number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import Refused
from ..core.random import Noise
from ..core.types import Shape
from ..data.loader import Augment


@dataclass(frozen=True, slots=True)
class Variants:
    """The versions that `augments`, one after another, make of an image of `shape`: `count` of them."""

    augments: tuple[Any, ...]
    shape: Shape
    counts: tuple[int, ...]

    @classmethod
    def of(cls, augments: Sequence[Augment], shape: Shape) -> Variants:
        """Raises Refused for an augmentation whose versions are without number."""
        counts = []
        for augment in augments:
            name = type(augment).__name__
            if getattr(augment, "mixes", False):
                raise Refused(f"{name} blends images, so that no two versions are equal")
            if not (hasattr(augment, "variants") and hasattr(augment, "variant")):
                raise Refused(f"{name} does not say how many versions of an image it makes (variants, variant)")
            count = augment.variants(shape)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise Refused(f"{name} says that it makes {count!r} versions of an image; expected a number from 1 on")
            counts.append(count)
        return cls(tuple(augments), shape, tuple(counts))

    @property
    def count(self) -> int:
        """How many there are."""
        product = 1
        for count in self.counts:
            product *= count
        return product

    @property
    def names(self) -> tuple[tuple[str, int], ...]:
        """The augmentations' classes, each with the number of its versions."""
        return tuple((type(augment).__name__, count) for augment, count in zip(self.augments, self.counts, strict=True))

    def numbers(self, noises: Sequence[Noise], index: Tensor) -> Tensor:
        """Which of them `(B,)` each sample at `index (B,)` becomes. `noises`: fresh ones, as the augmentations get."""
        number = index * 0
        for augment, count, noise in zip(self.augments, self.counts, noises, strict=True):
            number = number * count + augment.variant(noise, self.shape)
        return number


def share_met_before(variants: int, epochs: int) -> float:
    """The share of a training's samples that it has met before, of so many equally likely versions of each image.

    Of n versions drawn e times, n (1 - (1 - 1/n)^e) different ones are expected. Versions that are not equally likely
    come again more often.
    """
    return 1 - variants * (1 - (1 - 1 / variants) ** epochs) / epochs

"""Data sets in memory or behind an index, and the training batches made of them.

A batch is a function of (seed, epoch, position): the order of an epoch is a permutation drawn from (seed, epoch),
an augmentation draws from (seed, epoch, index of the image).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.interfaces import Augment
from ..core.random import Noise, key
from ..core.types import Batch, Shape, ThreatModel
from ..distributed.ranks import ALONE, Ranks
from ..training.variants import Variants
from .prefetch import Feed, as_images, pixels, send


@runtime_checkable
class Split(Protocol):
    """Images and labels by position."""

    labels: Tensor
    """All labels, `(N,)` int64."""

    def __len__(self) -> int: ...

    def images(self, index: Tensor) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1] of the images at `index (B,)`."""
        ...

    # Two more are used where a split has them: `pixels(index)`, the same images as uint8, to be sent on at a quarter of
    # the size; and `in_memory = True`, where reading a batch takes no time worth hiding.


class ArraySplit:
    """Images in memory: `images (N, C, H, W)` uint8 (0..255) or float (in [0, 1]), `labels (N,)`.

    uint8 is kept as it is, a quarter of the memory, and becomes float32 batch by batch.
    """

    in_memory = True

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        for what, value in (("images", images), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise DataError(f"{what} must be a tensor, got {type(value).__name__}; torch.as_tensor makes one")
        if labels.ndim != 1 or not bool((labels == labels.long()).all()):  # probabilities, say
            raise DataError(f"labels must be whole numbers (N,), got {labels.dtype} {tuple(labels.shape)}")
        if images.ndim != 4:
            raise DataError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images but {len(labels)} labels")
        if images.dtype != torch.uint8:
            images = images.detach().float()
            check_images(images)
        self._images = images
        self.labels = labels.long()

    def __len__(self) -> int:
        return len(self._images)

    def pixels(self, index: Tensor) -> Tensor:
        """The same as they are kept, uint8 or float32."""
        return self._images[index]

    def images(self, index: Tensor) -> Tensor:
        return as_images(self.pixels(index))


class Subset:
    """A part of a split, by positions `(M,)`."""

    def __init__(self, split: Split, positions: Tensor) -> None:
        self.split = split
        self.positions = positions
        self.labels = split.labels[positions]

    @property
    def in_memory(self) -> bool:
        return getattr(self.split, "in_memory", False)

    def __len__(self) -> int:
        return len(self.positions)

    def images(self, index: Tensor) -> Tensor:
        return self.split.images(self.positions[index])

    def pixels(self, index: Tensor) -> Tensor:
        return pixels(self.split, self.positions[index])


@dataclass(frozen=True)
class Dataset:
    """Training and test images with what one must know about them.

    `mean` and `std`, one number a channel of [0, 1] images, are what nets normalise with. `threat` is the
    customary attacker. `defaults` are the customary settings of a run (a recipe in a mapping, e.g.
    `{"epochs": 20, "optimizer": {"lr": 0.1}}`); everything in it yields to a recipe or an option.
    `teachers` says per role which model a missing teacher is, and what its recipe adds:
    `{"robust": {"model": "resnet20", "recipe": {"epochs": 30}}}`; `large` goes on top for nets of more than ten
    million parameters.
    `fingerprint` changes when the data changes: prepared teachers are cached under it.
    """

    name: str
    train: Split
    test: Split
    shape: Shape
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threat: ThreatModel = field(default_factory=ThreatModel)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name, split in (("training", self.train), ("test", self.test)):
            if len(split) == 0:
                raise DataError(f"the {name} part of data set {self.name!r} is empty")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                wrong = low if low < 0 else high
                raise DataError(
                    f"a {name} label of data set {self.name!r} is {wrong}, "
                    f"but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})"
                )
        channels = self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise DataError(
                f"data set {self.name!r} has {channels} channels, but {len(self.mean)} means and {len(self.std)} stds"
            )


def check_images(images: Tensor) -> None:
    """Raise DataError unless all values are numbers in [0, 1] (1e-6 of slack)."""
    if images.numel() == 0:
        return
    if not bool(images.isfinite().all()):
        raise DataError("images hold values that are not numbers (NaN or infinity)")
    low, high = float(images.min()), float(images.max())
    if low < -1e-6 or high > 1 + 1e-6:
        raise DataError(
            f"images must lie in [0, 1], these go from {low:.4g} to {high:.4g}; "
            "divide 8-bit images by 255 and do not normalise: each net does that itself"
        )


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split | None]:
    """`split` without, and only with, a share of its samples, drawn from `seed` alone. No share: (split, None)."""
    count = round(share * len(split))
    if count == 0:
        return split, None
    if count >= len(split):
        raise DataError(f"holding out {share:g} of {len(split)} training images leaves none to train on")
    order = _permutation(len(split), key(seed, "hold-out"))
    return Subset(split, order[count:].sort().values), Subset(split, order[:count].sort().values)


class Loader:
    """The training batches of each epoch.

    `augments` run in order on whole batches. The last batch of an epoch may be smaller, as in the papers' scripts;
    a last batch of a single image is left out, since batch norm has no variance there. Of several processes each gets
    its part of the same batches; `batch_size` and `len` are of the whole ones.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augments: Sequence[Augment] = (),
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
        workers: int = 0,
    ) -> None:
        self.split = split
        self.ranks = ranks
        self.batch_size = min(batch_size, len(split))
        self.seed = seed
        self.augments = list(augments)
        self.device = torch.device(device)
        self.feed = Feed(split, self.device, workers)
        self.variants: Variants | None = None
        """Set, if batches shall say which version of its image each sample is."""

    def __len__(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 1 or full == 0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""
        order = _permutation(len(self.split), key(self.seed, "order", epoch))
        wanted = [
            self._mine(order[number * self.batch_size : (number + 1) * self.batch_size])
            for number in range(start, len(self))
        ]
        for (index, rows), x in zip(wanted, self.feed.batches([index for index, _ in wanted]), strict=True):
            batch = self._augmented(x, index, epoch)
            yield batch if rows is None else batch.select(rows.to(self.device))

    def size(self, number: int) -> int:
        """How many images the whole batch `number` of an epoch has."""
        return min(self.batch_size, len(self.split) - number * self.batch_size)

    def _mine(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of a whole batch, the images that this process makes, and which of these are its part (None: all)."""
        rows = self.ranks.rows(len(index))
        if self.ranks.size > 1 and any(getattr(augment, "mixes", False) for augment in self.augments):
            # Partners may be anywhere in the batch: make all of it, take this process's part.
            return index, torch.arange(len(index))[rows]
        return index[rows], None

    def batch(self, index: Tensor, epoch: int) -> Batch:
        """The augmented batch of the images at `index`, on the device."""
        return self._augmented(self.feed.images(index), index, epoch)

    def _augmented(self, x: Tensor, index: Tensor, epoch: int) -> Batch:
        batch = Batch(x, send(self.split.labels[index], self.device), send(index, self.device))
        for augment, noise in zip(self.augments, self._noises(batch.index, epoch), strict=True):
            batch = augment(batch, noise)
        if self.variants is not None:
            # With noises of its own, each of which begins anew.
            number = self.variants.numbers(self._noises(batch.index, epoch), batch.index)
            batch = replace(batch, variant=number)
        return batch

    def _noises(self, index: Tensor, epoch: int) -> list[Noise]:
        """One for each augmentation."""
        return [Noise(key(self.seed, "augment", epoch, place), index) for place in range(len(self.augments))]


def fetch(split: Split, index: Tensor, device: torch.device | str = "cpu") -> Batch:
    """The images at `index (B,)` as they are."""
    x = split.images(index).to(device, non_blocking=True)
    y = split.labels[index].to(device, non_blocking=True)
    return Batch(x, y, index.to(device, non_blocking=True))


def _permutation(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)

"""Data sets: images and labels by position, in memory or behind an index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.random import key
from ..core.types import Batch, Shape, ThreatModel


@runtime_checkable
class Split(Protocol):
    """Images and labels by position."""

    labels: Tensor
    """All labels, `(N,)` int64."""

    def __len__(self) -> int: ...

    def images(self, index: Tensor) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1] of the images at `index (B,)`."""


@runtime_checkable
class StoredSplit(Split, Protocol):
    """A split that gives its images as it stores them, too: bytes are sent to a device at a quarter of the size."""

    in_memory: bool
    """Whether reading a batch takes no time worth hiding."""

    def pixels(self, index: Tensor) -> Tensor:
        """`(B, C, H, W)` uint8, or float32 in [0, 1], of the images at `index (B,)`."""


class ArraySplit:
    """Images in memory: `images (N, C, H, W)` uint8 (0..255) or float (in [0, 1]), `labels (N,)`.

    uint8 is kept as it is, a quarter of the memory, and becomes float32 batch by batch. `in_memory=False`: the images
    are a file's, mapped into memory that has no room for all of them.
    """

    def __init__(self, images: Tensor, labels: Tensor, in_memory: bool = True) -> None:
        for name, value in (("images", images), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise DataError(f"{name} must be a tensor, got {type(value).__name__}; torch.as_tensor makes one")
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
        self.in_memory = in_memory

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
        self.in_memory = in_memory(split)

    def __len__(self) -> int:
        return len(self.positions)

    def images(self, index: Tensor) -> Tensor:
        return self.split.images(self.positions[index])

    def pixels(self, index: Tensor) -> Tensor:
        return pixels(self.split, self.positions[index])


class MixedSplit:
    """`real` images and behind them `generated` ones, of which each training batch holds a share, `fraction`.

    An epoch shows as many images as `real` has, each of either kind once at most while there are enough.
    """

    in_memory = False

    def __init__(self, real: Split, generated: Split, fraction: float) -> None:
        self.real, self.generated, self.fraction = real, generated, fraction
        self.labels = torch.cat([real.labels, generated.labels])

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: Tensor) -> Tensor:
        own = index < len(self.real)
        parts = pixels(self.real, index[own]), pixels(self.generated, index[~own] - len(self.real))
        if parts[0].dtype != parts[1].dtype:
            parts = as_images(parts[0]), as_images(parts[1])
        found = parts[0].new_empty((len(index), *parts[0].shape[1:]))
        found[own], found[~own] = parts
        return found

    def images(self, index: Tensor) -> Tensor:
        return as_images(self.pixels(index))

    def epoch(self, batch_size: int, seed: int) -> Tensor:
        """Positions `(len(real),)` in the order in which an epoch's batches take them, which follows from `seed`.

        Of a batch of B images `floor(fraction * B)` are generated, and stand anywhere in it: processes and
        micro-batches, which take a part each, get both kinds.
        """
        count = len(self.real)
        sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
        made = [int(self.fraction * size + 1e-9) for size in sizes]
        real = _drawn(count, count - sum(made), seed).split([a - b for a, b in zip(sizes, made, strict=True)])
        generated = (count + _drawn(len(self.generated), sum(made), key(seed, "generated"))).split(made)
        batches = [torch.cat(parts) for parts in zip(real, generated, strict=True)]
        return torch.cat([b[permutation(len(b), key(seed, number))] for number, b in enumerate(batches)])


@dataclass(frozen=True)
class Dataset:
    """Training and test images with what one must know about them.

    `mean` and `std`, one number a channel of [0, 1] images, are what nets normalise with. `threat` is the
    customary attacker. `defaults` are the customary settings of a run (a recipe in a mapping, e.g.
    `{"epochs": 20, "optimizer": {"lr": 0.1}}`); everything in it yields to a recipe or an option.
    `teachers` says per role which model a missing teacher is, and what its recipe adds:
    `{"robust": {"model": "resnet20", "recipe": {"epochs": 30}}}`; `large` goes on top for nets of more than ten
    million parameters.
    `fingerprint` changes when the data changes: prepared teachers are cached under it. `notes`: what the user should
    know of how it was read (files that were left out), a sentence each.
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
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise DataError(
                f"data set {self.name!r} has one class, {', '.join(self.classes) or 'none'}: nothing to tell apart"
            )
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


def described(data: Dataset) -> str:
    """Its classes and sizes in a line."""
    shown = ", ".join(data.classes[:10]) + (f", ... {data.classes[-1]}" if len(data.classes) > 10 else "")
    channels, height, width = data.shape
    return (
        f"data {data.name}: {len(data.classes)} classes ({shown}); {len(data.train):,} training and {len(data.test):,} "
        f"test images of {width}x{height}, {channels} channel{'' if channels == 1 else 's'}"
    )


def gaps(data: Dataset) -> list[str]:
    """Classes without an image in one of the parts, a sentence for each part: their accuracy counts as nothing."""
    found = []
    for part, split in (("training", data.train), ("test", data.test)):
        there = set(split.labels.unique().tolist())
        empty = [name for place, name in enumerate(data.classes) if place not in there]
        if empty:
            shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
            found.append(f"data {data.name}: {len(empty)} of {len(data.classes)} classes have no {part} image: {shown}")
    return found


@runtime_checkable
class DatasetSource(Protocol):
    """A source of data. Fields that the command line fills: `dir` (str or None) and `download` (bool)."""

    def __call__(self) -> Dataset: ...


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
    if isinstance(split, MixedSplit):  # generated images are no measure of anything
        real, held_out = hold_out(split.real, share, seed)
        return MixedSplit(real, split.generated, split.fraction), held_out
    count = round(share * len(split))
    if count == 0:
        return split, None
    if count >= len(split):
        raise DataError(f"holding out {share:g} of {len(split)} training images leaves none to train on")
    order = permutation(len(split), key(seed, "hold-out"))
    return Subset(split, order[count:].sort().values), Subset(split, order[:count].sort().values)


def part_of(split: Split, count: int) -> Split:
    """`count` images of a split, of each class its share, and one at least while there are as many.

    They follow from the labels alone: every seed and method gets the same, and a larger part has all of a smaller one.
    """
    if isinstance(split, MixedSplit):
        return MixedSplit(part_of(split.real, count), split.generated, split.fraction)
    order = permutation(len(split), key("part of the training images"))
    labels = split.labels[order]
    sizes = torch.bincount(labels)
    by_class = labels.argsort(stable=True)
    within = torch.empty_like(labels)  # 0, 1, ... in each class
    within[by_class] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[by_class]]
    chosen = (within.double() / sizes[labels]).argsort(stable=True)[:count]
    return Subset(split, order[chosen].sort().values)


def real_images(split: Split) -> int:
    """How many images it has without generated ones."""
    return len(split.real if isinstance(split, MixedSplit) else split)


def shape_of(split: Split) -> Shape:
    """Of its images."""
    channels, height, width = split.images(torch.tensor([0])).shape[1:]
    return channels, height, width


def in_memory(split: Split) -> bool:
    """Whether reading a batch of the split takes no time worth hiding."""
    return isinstance(split, StoredSplit) and split.in_memory


def pixels(split: Split, index: Tensor) -> Tensor:
    """The images at `index (B,)` as the split stores them, `(B, C, H, W)` uint8 or float32 in [0, 1]."""
    return split.pixels(index) if isinstance(split, StoredSplit) else split.images(index)


def as_images(pixels: Tensor) -> Tensor:
    """Bytes to float32 in [0, 1]; floats as they are."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def fetch(split: Split, index: Tensor, device: torch.device | str = "cpu") -> Batch:
    """The images at `index (B,)` as they are."""
    x = split.images(index).to(device, non_blocking=True)
    y = split.labels[index].to(device, non_blocking=True)
    return Batch(x, y, index.to(device, non_blocking=True))


def permutation(count: int, seed: int) -> Tensor:
    """The numbers 0 to count - 1 in an order that follows from `seed`, `(count,)` int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)


def _drawn(count: int, wanted: int, seed: int) -> Tensor:
    """So many of the numbers 0 to count - 1, all of them before any comes again."""
    rounds = range(-(-wanted // count))
    return torch.cat([torch.arange(0), *(permutation(count, key(seed, number)) for number in rounds)])[:wanted]

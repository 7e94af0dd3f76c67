"""Data sets of what a caller has in memory: tensors, NumPy arrays, torch's Dataset and DataLoader. And what sources of
data share: statistics, fingerprints, the usual threat.

Images are uint8 (0..255) or floats in [0, 1], `(N, C, H, W)`; nothing is guessed about others: whoever has normalised
images, `(N, H, W, C)` or labels from 1 on is told what to write. Images of a torch Dataset are read once and kept, as
bytes where that loses nothing, and must come out the same each time: a random transform would make every look at an
image another image, under one number.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)
from torch.utils.data import Dataset as TorchDataset

from ..core.errors import DataError
from ..core.types import Shape, ThreatModel
from .dataset import ArraySplit, Dataset, Split, as_images, check_images, shape_of

MOST_BYTES = 16 << 30
"""Of images, as bytes, that a torch Dataset is read into memory for."""
LOOKED_AT_TWICE = 8
"""Items of a torch Dataset that are read once more, to see whether they come out the same."""
MOST_CLASSES = 100_000
NO_POSITIONS = "an IterableDataset has no positions: read it into tensors, or give a map-style Dataset"
FORMS = (
    "a pair (images, labels) of tensors or arrays, a torch Dataset or DataLoader with items (image, label), or an rkd "
    "Split"
)


@runtime_checkable
class NamesClasses(Protocol):
    """A data set that says what its classes are called, in the order of their numbers, as torchvision's do."""

    classes: Sequence[str]


@runtime_checkable
class _Picture(Protocol):
    """A PIL image."""

    mode: str

    def convert(self, mode: str) -> Any: ...


def make_dataset(
    train: Any,
    test: Any,
    *,
    name: str = "data",
    classes: Sequence[str] | int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    threat: ThreatModel | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Dataset:
    """A data set of training and test images: each a pair `(images, labels)`, a torch Dataset or DataLoader, a Split.

        rkd.make_dataset((x_train, y_train), (x_test, y_test), classes=["cat", "dog"])

    `classes`: their names in the order of the labels, or how many there are; by default the data's own, or as many as
    the labels name. `mean` and `std` (a number a channel, of images in [0, 1]), what nets normalise with, are measured
    unless given; `threat` is Linf 8/255, above 64 pixels 4/255. `defaults`: as for `rkd.plugin.Dataset`. Of a
    DataLoader its data set is taken: order, batches and workers are rkd's own. Raises DataError.
    """
    splits = {"training": as_split(train, "the training data"), "test": as_split(test, "the test data")}
    for part, split in splits.items():
        if not len(split):
            raise DataError(f"the {part} data hold no images")
    shape, other = shape_of(splits["training"]), shape_of(splits["test"])
    if shape != other:
        raise DataError(f"training images are {shape} (C, H, W), test images {other}: they must have one shape")
    if classes is None and isinstance(train, NamesClasses):
        classes = train.classes
    measured = statistics(splits["training"], shape)
    return Dataset(
        name,
        splits["training"],
        splits["test"],
        shape,
        _class_names(classes, splits),
        tuple(mean) if mean is not None else measured[0],
        tuple(std) if std is not None else measured[1],
        threat or customary_threat(shape),
        defaults or {},
        fingerprint=fingerprint_of(splits["training"], splits["test"]),
    )


def as_split(given: Any, what: str = "the data") -> Split:
    """Images and labels by position, of whatever of `FORMS` is given; `what` names it in errors. Raises DataError."""
    if isinstance(given, DataLoader):
        given = _dataset_of(given, what)
    if isinstance(given, TorchDataset):
        return _read(given, what)
    if isinstance(given, Split):
        return given
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return _arrays(given[0], given[1], what)
    kind = type(given).__name__
    raise DataError(f"{what}: expected {FORMS}; got {kind}" + (f" of {len(given)}" if isinstance(given, tuple) else ""))


def is_pair(given: Any) -> bool:
    """Whether `given` is one pair (images, labels), and not one of training and test data."""
    return isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[0], (Tensor, np.ndarray))


def _arrays(images: Any, labels: Any, what: str) -> ArraySplit:
    tensors = []
    for name, value in (("images", images), ("labels", labels)):
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "buif":
                raise DataError(f"{what}: {name} must be numbers, got an array of {value.dtype}")
            value = torch.from_numpy(np.ascontiguousarray(value))
        tensors.append(value.detach().cpu() if isinstance(value, Tensor) else value)
    images, labels = tensors
    if isinstance(images, Tensor):
        _check_layout(images, what)
        _check_values(images, what)
        images = compact(images)
    if isinstance(labels, Tensor) and labels.ndim == 2:
        hint = "labels.argmax(1)" if labels.shape[1] > 1 else "labels.flatten()"
        raise DataError(f"{what}: labels must be whole numbers (N,), got {tuple(labels.shape)}; take {hint}")
    try:
        return ArraySplit(images, labels)
    except DataError as error:
        raise DataError(f"{what}: {error}") from None


def _check_layout(images: Tensor, what: str) -> None:
    if images.ndim == 3:
        raise DataError(
            f"{what}: images must be (N, C, H, W), got {tuple(images.shape)}; grey ones need a channel: images[:, None]"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 2, 3, 4):
        raise DataError(
            f"{what}: images must be (N, C, H, W), and {tuple(images.shape)} looks like (N, H, W, C); take "
            "images.permute(0, 3, 1, 2) of a tensor, images.transpose(0, 3, 1, 2) of an array"
        )


def _check_values(images: Tensor, what: str) -> None:
    """Raise DataError for images that were scaled in another way than to bytes or [0, 1]."""
    if not images.numel():
        return
    if images.dtype == torch.bool or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise DataError(f"{what}: images must be uint8 (0..255) or floats in [0, 1], got {images.dtype}")
    if images.dtype == torch.uint8:
        if int(images.max()) <= 1:
            raise DataError(f"{what}: uint8 images go from 0 to 255, and these to 1: give them as floats, or times 255")
        return
    low, high = (float(value) for value in images.aminmax())
    if low < -1e-6:
        raise DataError(
            f"{what}: images must lie in [0, 1], and these go from {low:.4g} to {high:.4g}: they are normalised. Take "
            "the normalisation out (transforms.Normalize; or undo it: images * std + mean): the net normalises, with "
            "the mean and std of the training images, so that a radius eps is one in [0, 1]"
        )
    if 1 + 1e-6 < high <= 255:
        raise DataError(f"{what}: images must lie in [0, 1], and these go to {high:.4g}: divide them by 255")
    if 0 < high <= 1.001 / 255:
        raise DataError(f"{what}: no image is brighter than {high:.2g}: they were divided by 255 twice")
    try:
        check_images(images)
    except DataError as error:
        raise DataError(f"{what}: {error}") from None


def _dataset_of(loader: DataLoader[Any], what: str) -> Any:
    """The data set of a DataLoader, if it deals out all of that and changes nothing."""
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(f"{what}: {NO_POSITIONS}")
    sampler: Any = loader.sampler
    plain = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    if plain and not isinstance(loader.batch_sampler, BatchSampler | None):
        plain, sampler = False, loader.batch_sampler
    if not plain:
        raise DataError(
            f"{what}: the DataLoader's {type(sampler).__name__} chooses images, and rkd deals out its own batches: "
            "give the data set, of a part of it as torch.utils.data.Subset(dataset, positions)"
        )
    if loader.collate_fn is not default_collate:
        raise DataError(
            f"{what}: the DataLoader's own collate_fn would not be used: give a data set whose items are (image, "
            "label), and augmentations by name or as objects (augments=[...])"
        )
    return loader.dataset


def _read(dataset: TorchDataset[Any], what: str) -> ArraySplit:
    """All items of a torch Dataset, in memory."""
    if isinstance(dataset, IterableDataset):
        raise DataError(f"{what}: {NO_POSITIONS}")
    try:
        count = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise DataError(f"{what}: {type(dataset).__name__} has no len()") from None
    if not count:
        raise DataError(f"{what}: the {type(dataset).__name__} is empty")
    first = _item(dataset, 0, what)[0]
    if first.numel() * count > MOST_BYTES:
        raise DataError(
            f"{what}: {first.numel() * count >> 30} GiB of images; read batch by batch are a folder of images "
            "(imagefolder:PATH) and a file of numpy.savez (npz:PATH), by name, and a Split of your own"
        )
    pixels = torch.empty((count, *first.shape), dtype=torch.uint8)  # as long as that loses nothing
    labels = []
    for place in range(count):
        image, label = _item(dataset, place, what)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"{what}: image {place} is {image.dtype} {tuple(image.shape)}, the first {first.dtype} "
                f"{tuple(first.shape)}: resize and crop all to one size (transforms.Resize, CenterCrop)"
            )
        kept = compact(image)
        if kept.dtype != pixels.dtype == torch.uint8:
            pixels = as_images(pixels)
        pixels[place] = kept if kept.dtype == pixels.dtype else as_images(kept)
        labels.append(label)
    for place in range(min(count, LOOKED_AT_TWICE)):
        if not torch.equal(as_images(_item(dataset, place, what)[0]), as_images(pixels[place])):
            raise DataError(
                f"{what}: image {place} comes out otherwise the second time: take random transforms out of the data "
                "set (RandomCrop, RandomHorizontalFlip, ...) and name augmentations, which rkd draws anew each "
                'epoch: augments=["crop", "flip"]'
            )
    return _arrays(pixels, torch.tensor(labels), what)


def _item(dataset: TorchDataset[Any], place: int, what: str) -> tuple[Tensor, int]:
    item = dataset[place]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
        raise DataError(f"{what}: items must be pairs (image, label), item {place} is a {kind}")
    image, label = item
    if isinstance(image, _Picture):
        picture = image if image.mode in ("L", "RGB") else image.convert("RGB")
        array = np.asarray(picture)
        image = torch.from_numpy(np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)))
    elif isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor) or image.ndim != 3:
        got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"{what}: images must be (C, H, W), image {place} is {got}; transforms.ToTensor() makes that")
    if isinstance(label, (Tensor, np.ndarray, np.generic)) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{what}: labels must be whole numbers, label {place} is {type(label).__name__}")
    image = image.detach().cpu()
    return (image.float() if image.is_floating_point() else image), label


def _class_names(classes: Sequence[str] | int | None, splits: Mapping[str, Split]) -> tuple[str, ...]:
    labels = splits["training"].labels
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"a training label is {low}: classes are numbered from 0")
    if classes is None:
        missing = sorted(set(range(min(high, len(labels)))) - set(labels.unique().tolist()))
        if missing == [0]:
            raise DataError(f"training labels go from 1 to {high}: classes are numbered from 0, take labels - 1")
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"training labels go up to {high}, but no image has the label {shown}: number the classes from 0 "
                "without gaps, or say how many there are: rkd.make_dataset(train, test, classes=N)"
            )
        classes = high + 1
    if isinstance(classes, int):
        if not 2 <= classes <= MOST_CLASSES:
            raise DataError(f"there must be 2 to {MOST_CLASSES:,} classes, got {classes}")
        return tuple(map(str, range(classes)))
    if isinstance(classes, str) or len(set(classes)) < len(classes):
        raise DataError(f"classes are their names, each once, or their number; got {classes!r}")
    return tuple(map(str, classes))


def compact(images: Tensor) -> Tensor:
    """Images as uint8 where that loses nothing (a quarter of the memory), else as they are."""
    if images.dtype == torch.uint8:
        return images
    rounded = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return rounded if torch.equal(rounded.float() / 255, images.float()) else images


def spread(count: int, limit: int) -> Tensor:
    """At most `limit` positions in `range(count)`, evenly spread."""
    return torch.arange(min(count, limit)) * count // min(count, limit) if count else torch.arange(0)


def statistics(split: Split, shape: Shape, limit: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel over at most `limit` images, to four decimals.

    A channel that never changes gets std 1, so that nothing is divided by zero.
    """
    total = torch.zeros(shape[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    index = spread(len(split), limit)
    for part in index.split(max(1, 2**24 // math.prod(shape))):  # some 128 MiB at a time
        x = split.images(part).double()
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
    count = max(1, len(index) * shape[1] * shape[2])
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    rounded = [round(value, 4) for value in std.tolist()]
    return tuple(round(value, 4) for value in mean.tolist()), tuple(value or 1.0 for value in rounded)


def customary_threat(shape: Shape) -> ThreatModel:
    """Linf 8/255 up to 64 pixels (CIFAR, Tiny ImageNet), 4/255 above (ImageNet); the step is a quarter of it."""
    eps = (8 if max(shape[1:]) <= 64 else 4) / 255
    return ThreatModel("Linf", eps, eps / 4)


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that follow from tensors' values and the `str` of anything else, on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Tensor):
            array = part.contiguous().numpy()
            digest.update(f"{tuple(part.shape)} {part.dtype}\x1f".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            digest.update(f"{part}\x1f".encode())
    return digest.hexdigest()


def fingerprint_of(train: Split, test: Split) -> str:
    """The fingerprint of two splits in memory: sizes, labels, and the pixels of a thousand images of each."""
    parts = [(len(split), split.labels, split.images(spread(len(split), 1000))) for split in (train, test)]
    return fingerprint(*parts[0], *parts[1])

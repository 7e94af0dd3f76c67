"""Accuracy under common corruptions: how a net does on worse images of the same content, at five severities.

Two sources. The files of a "-C" data set (CIFAR-10-C, CIFAR-100-C, or any folder of the same form) give the numbers of
the literature: `corrupted_files_accuracy`. Where they are missing, rkd's own corruptions (hook `rkd_corruptions`) are
computed on the test images: `corrupted_accuracy`. Those are other formulas in another choice, and not comparable with
published numbers.

    mean = average over corruptions c and severities s = 1 ... 5 of accuracy(c, s)

Hendrycks and Dietterich, ICLR 2019 (`rkd cite gaussian-noise`). Their mCE on ImageNet divides each corruption's error
by AlexNet's; for CIFAR the mean is not normalised, and 1 - `mean` is what is called mCE there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from .. import ops
from ..core.errors import DataError, RkdError
from ..core.random import Noise, key
from ..data.dataset import Split, check_images, fetch
from ..nets.modes import running
from ..storage.files import check_file
from ..storage.text import expanded
from .model import Finite, as_float32, check_classes
from .samples import EvalSettings, Record, choose_samples, run_batches

T = TypeVar("T")

MOST_LABELS = 50_000_000
"""A file with holes in it can say that it has any number of labels: CIFAR-10-C has 50,000, ImageNet-C 250,000."""

SEVERITIES = (1, 2, 3, 4, 5)

OWN = "rkd's own corruptions, not CIFAR-10-C"

BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The fifteen corruptions that published means are taken over. The four further files that CIFAR-10-C comes with
(speckle_noise, gaussian_blur, spatter, saturate) are meant for tuning, and take no part unless named."""


@runtime_checkable
class Corruption(Protocol):
    """A common corruption: worse images of the same content. It knows no net and no label.

    def darker(x, severity, noise):
        return x * at_severity((0.9, 0.8, 0.7, 0.6, 0.5), severity)
    """

    def __call__(self, x: Tensor, severity: int, noise: Noise) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1] for such images of any number of channels and any size from 8 x 8.

        `severity` from 1 to 5: the higher, the farther from `x`; raises RkdError for any other. Every random number
        comes from `noise`, so that an image's result does not depend on the rest of the batch. `x` stays as it is.
        """


def at_severity(values: Sequence[T], severity: int) -> T:
    """The value of a severity, `values` holding those of 1 to 5. Raises RkdError for any other."""
    if severity not in SEVERITIES:
        raise RkdError(f"a severity is one of 1, 2, 3, 4, 5; got {severity!r}")
    return values[severity - 1]


def corrupted_accuracy(
    net: nn.Module, split: Split, corruptions: Mapping[str, Corruption], settings: EvalSettings | None = None
) -> dict[str, Any]:
    """Accuracy of `net`, which takes images in [0, 1], on the images of `split` under rkd's own corruptions.

    `{"source": OWN, "accuracy": {name: [five fractions]}, "mean": fraction, "samples": images per severity}`.
    The samples are those that `evaluate` takes; the results do not depend on `batch_size`. The net is left as it was.
    Raises RkdError if a corruption breaks its promises or there is none, DataError for images outside [0, 1] or labels
    that the net does not know.
    """
    settings = (settings or EvalSettings()).plain()

    def versions(name: str, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        batch = fetch(split, rows, settings.device)
        check_images(batch.x)
        for severity in SEVERITIES:
            noise = Noise(key(settings.seed, "corruption", name, severity), batch.index)
            x = corruptions[name](batch.x, severity, noise)
            _check(x, batch.x, name, severity)
            yield x, batch.y

    return {"source": OWN} | _accuracy(net, list(corruptions), settings.samples(split), versions, settings)


def corrupted_files_accuracy(
    net: nn.Module, folder: Path | str, settings: EvalSettings | None = None, *, names: Sequence[str] = BENCHMARK,
    shape: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy of `net`, which takes images in [0, 1], on the files of a "-C" folder; see `open_corrupted`.

    As `corrupted_accuracy`, with the folder's name for a source. The settings' `limit` takes as many images of each
    severity, the same of each. Raises DataError for files of another form.
    """
    settings = (settings or EvalSettings()).plain()
    files = open_corrupted(folder, names, shape, settings.classes)

    def versions(name: str, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        y = files.labels[rows].to(settings.device)
        for severity in SEVERITIES:
            yield files.images(name, severity, rows).to(settings.device), y

    positions = choose_samples(len(files.labels), settings.limit)
    return {"source": files.name} | _accuracy(net, list(names), positions, versions, settings)


@dataclass(frozen=True)
class CorruptedFiles:
    """The files of a "-C" folder, mapped into memory: nothing is read before it is asked for.

    `labels (N,)` int64 of the images of one severity, `arrays` per corruption uint8 `(5N, H, W, C)`.
    """

    name: str
    labels: Tensor
    arrays: Mapping[str, Any]

    def images(self, name: str, severity: int, rows: Tensor) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1]: the images at `rows (B,)` of one corruption and severity."""
        first = at_severity([place * len(self.labels) for place in range(5)], severity)
        pixels = torch.tensor(self.arrays[name][(first + rows).numpy()])
        return pixels.permute(0, 3, 1, 2).float() / 255


def open_corrupted(
    folder: Path | str, names: Sequence[str] = BENCHMARK, shape: Sequence[int] | None = None, classes: int | None = None
) -> CorruptedFiles:
    """The files of a "-C" folder, checked: `NAME.npy` uint8 `(5N, H, W, C)`, the severities 1 to 5 one after the other,
    and `labels.npy`, integers `(5N,)`, the same N labels five times.

    `shape` (C, H, W) and `classes`: what the net takes, where it is known. Raises DataError naming the file and what
    was expected of it. No file is unpickled.
    """
    folder = expanded(folder)
    form = "a NAME.npy for each corruption, uint8 (5N, H, W, C), the severities 1 to 5 in order, and labels.npy (5N,)"
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; expected one with {form}")
    if not names:
        raise DataError(f"no corruption of {folder} was named")
    missing = [f"{name}.npy" for name in (*names, "labels") if not (folder / f"{name}.npy").is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; expected {form}")
    labels = _labels(_load(folder / "labels.npy"), folder / "labels.npy", classes)
    arrays: dict[str, Any] = {}
    first = None
    for name in names:
        file = folder / f"{name}.npy"
        array = _load(file)
        if array.dtype != "uint8" or array.ndim != 4 or (shape is None and array.shape[3] not in (1, 3)):
            expected = "uint8 images (5N, H, W, C), colour (C = 3) or grey (C = 1)"
        elif len(array) != 5 * len(labels):
            expected = f"{5 * len(labels)} images, one for each label in labels.npy"
        elif shape is not None and tuple(array.shape[1:]) != (shape[1], shape[2], shape[0]):
            expected = f"images (H, W, C) = {(shape[1], shape[2], shape[0])}, which the net takes"
        elif first is not None and array.shape != arrays[first].shape:
            expected = f"the shape of {first}.npy, {arrays[first].shape}"
        else:
            arrays[name] = array
            first = first or name
            continue
        raise DataError(f"{file} holds {array.dtype} of shape {array.shape}; expected {expected}")
    return CorruptedFiles(folder.resolve().name, labels, arrays)


def _load(file: Path) -> Any:
    """The array of a .npy file, mapped."""
    import numpy as np

    try:
        check_file(file)
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # ValueError (pickles, too short), EOFError, OSError
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{file} is not a whole .npy file of numbers: {first}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file} is an archive of arrays; expected a single array, as numpy.save writes it")
    return array


def _labels(array: Any, file: Path, classes: int | None) -> Tensor:
    """`(N,)` int64 of the labels of all severities."""
    sound = array.dtype.kind in "iu" and array.ndim == 1 and 0 < len(array) <= MOST_LABELS and len(array) % 5 == 0
    if not sound:
        raise DataError(
            f"{file} holds {array.dtype} of shape {array.shape}; expected integers (5N,), a label for each image of "
            "the five severities"
        )
    labels = torch.tensor(array.astype("int64"))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        most = f" to {classes - 1}" if classes is not None else " on"
        raise DataError(f"{file} holds the label {low if low < 0 else high}; expected classes from 0{most}")
    by_severity = labels.reshape(5, -1)
    if not bool((by_severity == by_severity[0]).all()):
        raise DataError(
            f"{file}: the five fifths of the labels differ; expected the severities one after the other, each with "
            "the same images in the same order"
        )
    return by_severity[0]


def _accuracy(
    net: nn.Module, names: Sequence[str], positions: Tensor,
    versions: Callable[[str, Tensor], Iterator[tuple[Tensor, Tensor]]], settings: EvalSettings,
) -> dict[str, Any]:  # fmt: skip
    """`versions(name, positions)` yields images and labels of each severity in order."""
    if not names:
        raise RkdError("there is no corruption to evaluate under")
    net, classes = Finite(as_float32(net)), settings.classes
    batches, count = positions.split(settings.batch_size), len(positions)
    if settings.ranks.size > 1:  # the net of each process has to see the same images first
        with running(net, "eval"), torch.no_grad():
            net(next(versions(names[0], batches[0]))[0])
    accuracy: dict[str, list[float]] = {}
    for name in names:

        def right(rows: Tensor, name: str = name) -> Record:
            nonlocal classes
            columns = []
            with running(net, "eval"), torch.no_grad():
                for x, y in versions(name, rows):
                    logits = net(x)
                    classes = check_classes(logits, y, classes)
                    columns.append(ops.correct(logits, y).cpu())
            return {"right": torch.stack(columns, dim=1)}

        records = run_batches(name, batches, right, count, settings)
        counts = torch.cat([record["right"] for record in records]).sum(0).tolist()
        accuracy[name] = [correct / count for correct in counts]
    mean = sum(map(sum, accuracy.values())) / (len(accuracy) * len(SEVERITIES))
    return {"accuracy": accuracy, "mean": mean, "samples": count}


def _check(images: Tensor, x: Tensor, name: str, severity: int) -> None:
    name = f"the corruption {name!r} at severity {severity}"
    if images.shape != x.shape or images.dtype != torch.float32:
        raise RkdError(f"{name} returned {images.dtype} {tuple(images.shape)} for float32 images {tuple(x.shape)}")
    try:
        check_images(images)
    except DataError as error:
        raise RkdError(f"{name}: {error}") from None

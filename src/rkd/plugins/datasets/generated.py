"""Generated images beside real ones: a share of each training batch comes from a file of a generative model's images.

The file is an `.npz` with `image (N, H, W, C)` or `(N, C, H, W)` uint8 and `label (N,)` integers, as Wang et al.
publish them (1 to 50 million images by EDM for CIFAR-10, CIFAR-100, SVHN and Tiny ImageNet). Test images, held-out
images, classes and all other settings are those of `base`.

    --dataset generated:1m.npz --set data.base=cifar10 --set data.fraction=0.7

An epoch has as many images as `base` has, `fraction` of them generated, as in the published scripts, which take 0.7 for
1 million and 0.8 for more. They draw generated images with replacement; here each comes once an epoch at most.

Images stay in the file and are read one by one: a file of any size takes 16 bytes of memory an image, for labels and
the order of an epoch. (Mapped into memory, the pages that were read would count as the process's.) So `image` must not
be compressed: `numpy.savez`, not `savez_compressed`.

References: wang2023better, gowal2021improving
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED

import numpy as np
import torch
from torch import Tensor

from rkd.plugin import (
    ConfigError,
    DataError,
    Dataset,
    DatasetSource,
    Family,
    MixedSplit,
    Shape,
    UnknownName,
    did_you_mean,
    fingerprint,
    hookimpl,
    spread,
)

from . import digits, torchvision
from ._common import locate
from .npz import Npz, check_size, first_line, opened, stored_array


@dataclass
class Generated:
    """Generated images in a NumPy file, mixed into each training batch of another data set.

    path: the file, with the arrays image and label.
    base: the data set of the real images: a built-in one, or npz:PATH.
    fraction: the generated share of each batch.
    arrays: the names of the images' and the labels' array.
    dir: the folder with the files of `base`, in which a relative path is looked up, too.
    download: whether to fetch what is missing of `base`.
    """

    path: str
    base: str = "cifar10"
    fraction: float = 0.7
    arrays: tuple[str, str] = ("image", "label")
    dir: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"data.fraction is the generated share of a batch, from 0 to 1, got {self.fraction:g}")

    def __call__(self) -> Dataset:
        file = locate(self.path, self.dir)
        if not file.is_file():
            raise DataError(f"data set generated: {file} does not exist. Write generated:PATH with the path of a file")
        base = self._base()()
        generated = StoredImages(file, self.arrays, base.shape, len(base.classes))
        sample = generated.pixels(spread(len(generated), 1000))
        return replace(
            base,
            name=f"generated:{self.path}",
            train=MixedSplit(base.train, generated, self.fraction),
            fingerprint=fingerprint(base.fingerprint, self.fraction, generated.labels, sample),
        )

    def _base(self) -> DatasetSource:
        kind, colon, path = self.base.partition(":")
        if kind == "npz" and colon:
            return Npz(path, dir=self.dir)
        known: Mapping[str, Any] = {**torchvision.rkd_datasets(), **digits.rkd_datasets()}
        if self.base not in known:
            near = did_you_mean(self.base, known)
            raise UnknownName(f"data.base: {self.base!r} is none of {', '.join(known)}, npz:PATH.{near}")
        return known[self.base](dir=self.dir, download=self.download)


class StoredImages:
    """Images that stay in an `.npz` file, for a data set of `shape` with so many classes. Raises DataError for others.

    The file is opened for each batch: threads and processes that read ahead need not share it.
    """

    in_memory = False

    def __init__(self, file: Path, arrays: tuple[str, str], shape: Shape, classes: int) -> None:
        self.file = file
        with opened(file, arrays) as content:
            if missing := [name for name in arrays if name not in content.files]:
                found = ", ".join(content.files[:10]) or "none"
                raise DataError(
                    f"{file} lacks {' and '.join(missing)}; the arrays there: {found}. Name the images' and the "
                    "labels' with --set data.arrays='[...]'"
                )
            images, labels = (content.zip.getinfo(f"{name}.npy") for name in arrays)  # type: ignore[union-attr]
            if images.compress_type != ZIP_STORED:
                raise DataError(
                    f"{file}: {arrays[0]} is compressed, and images are read from the file one by one; write it with "
                    "numpy.savez, which does not compress"
                )
            check_size(labels, file)
            try:
                self._place, there, by_columns, dtype = stored_array(file, images)
                self.labels = _labels(content[arrays[1]], classes, f"{file}: {arrays[1]}")
            except DataError:
                raise
            except Exception as error:  # a damaged member, or one with pickled objects
                raise DataError(f"{file} cannot be read: {first_line(error)}") from error
        channels, height, width = shape
        layouts: dict[tuple[int, ...], tuple[int, ...]] = {(height, width, channels): (0, 3, 1, 2), shape: (0, 1, 2, 3)}
        if channels == 1:
            layouts[height, width] = (0, 1, 2)
        if dtype != np.uint8 or by_columns or there[1:] not in layouts:
            raise DataError(
                f"{file}: {arrays[0]} must hold images (N, {height}, {width}, {channels}) or (N, {channels}, {height}, "
                f"{width}) as uint8, those of the data set that they join; it is {dtype} of shape {there}"
            )
        if there[0] != len(self.labels) or not there[0]:
            raise DataError(f"{file} holds {there[0]:,} images and {len(self.labels):,} labels")
        if images.file_size < there[0] * channels * height * width:
            raise DataError(f"{file}: {arrays[0]} ends before its {there[0]:,} images do")
        self._stored, self._axes, self._shape = there[1:], layouts[there[1:]], shape

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: Tensor) -> Tensor:
        """`(B, C, H, W)` uint8."""
        found = np.empty((len(index), *self._stored), np.uint8)
        size = found[:1].nbytes
        with self.file.open("rb", buffering=0) as file:
            for image, number in zip(found, index.tolist(), strict=True):
                file.seek(self._place + number * size)
                if file.readinto(image.reshape(-1)) != size:
                    raise DataError(f"{self.file} has become shorter: image {number:,} is not there")
        return torch.from_numpy(found.transpose(self._axes)).reshape(-1, *self._shape).contiguous()

    def images(self, index: Tensor) -> Tensor:
        return self.pixels(index).float() / 255


def _labels(array: np.ndarray, classes: int, what: str) -> Tensor:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{what} must hold integers (N,); it is {array.dtype} of shape {array.shape}")
    if len(array) and not 0 <= array.min() <= array.max() < classes:
        raise DataError(
            f"{what} goes from {array.min()} to {array.max()}, but the data set that the images join has {classes} "
            f"classes (0 to {classes - 1})"
        )
    return torch.from_numpy(array.astype(np.int64))


@hookimpl
def rkd_datasets() -> dict[str, object]:
    return {"generated:PATH": Family(r"generated:(?P<path>.+)", Generated, ("generated:PATH",))}

"""Any images in one NumPy file with the arrays `x_train`, `y_train`, `x_test`, `y_test`.

Images are uint8 (0..255) or floats in [0, 1], as `(N, H, W)` grey, `(N, H, W, C)` or `(N, C, H, W)`; labels are
integers `(N,)` or `(N, 1)`, counted from 0. With `layout=auto` a last axis of 1 or 3 means NHWC and a second axis of
1 or 3 means NCHW; where both or neither fit, `layout` has to say. Nothing in the file is unpickled.

References: harris2020array
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZIP_STORED, ZipInfo

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from rkd.plugin import (
    ArraySplit,
    ConfigError,
    DataError,
    Dataset,
    Family,
    Shape,
    check_images,
    compact,
    customary_threat,
    fingerprint_of,
    free_memory,
    hookimpl,
    statistics,
)

from ._common import HELD_OUT, locate

ANY_SIZE = 1 << 30
"""Bytes that an array may always unpack to."""
MOST_TIMES = 100
"""How many times the file's size a larger array may unpack to."""

MOST_CLASSES = 100_000

NAMES = ("x_train", "y_train", "x_test", "y_test")
USUAL = (NAMES, ("train_images", "train_labels", "test_images", "test_labels"))
"""How files call the four arrays; the second are MedMNIST's."""


@dataclass
class Npz:
    """Images in a NumPy file with the arrays x_train, y_train, x_test, y_test.

    path: the file.
    layout: order of the axes of four-dimensional images; `auto` looks for the axis of 1 or 3 channels.
    num_classes: by default the largest training label + 1, where every class has an image.
    classes: the classes' names in the order of their numbers; by default the numbers.
    arrays: the names of x_train, y_train, x_test, y_test in the file; by default these, or MedMNIST's.
    dir: the folder in which a relative path is looked up.
    download: not used.
    """

    path: str
    layout: Literal["auto", "NHWC", "NCHW"] = "auto"
    num_classes: int | None = None
    classes: list[str] | None = None
    arrays: list[str] | None = None
    dir: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.num_classes is not None and not 1 <= self.num_classes <= MOST_CLASSES:
            raise ConfigError(f"data.num_classes must be from 1 to {MOST_CLASSES:,}, got {self.num_classes}")
        if self.arrays is not None and len(self.arrays) != 4:
            raise ConfigError(
                f"data.arrays: four names are needed, of x_train, y_train, x_test, y_test; got {self.arrays}"
            )
        if self.classes is not None and self.num_classes not in (None, len(self.classes)):
            raise ConfigError(f"data.num_classes is {self.num_classes}, but data.classes has {len(self.classes)} names")

    def __call__(self) -> Dataset:
        file = locate(self.path, self.dir)
        arrays, others = _read(file, self.arrays)
        labels = {part: _labels(arrays[f"y_{part}"], f"{file}: y_{part}") for part in ("train", "test")}
        images = {part: _images(arrays[f"x_{part}"], self.layout, f"{file}: x_{part}") for part in ("train", "test")}
        for part in ("train", "test"):
            if len(images[part]) != len(labels[part]):
                raise DataError(
                    f"{file}: x_{part} holds {len(images[part])} images, but y_{part} {len(labels[part])} labels"
                )
        if images["train"].shape[1:] != images["test"].shape[1:]:
            sizes = " and ".join(f"x_{part} {tuple(images[part].shape[1:])}" for part in ("train", "test"))
            raise DataError(f"{file}: training and test images differ in shape: {sizes} (C, H, W)")
        classes = self._class_names(file, labels)
        channels, height, width = images["train"].shape[1:]
        shape: Shape = (channels, height, width)
        train, test = (ArraySplit(images[part], labels[part]) for part in ("train", "test"))
        mean, std = statistics(train, shape)
        return Dataset(
            name=f"npz:{self.path}",
            train=train,
            test=test,
            shape=shape,
            classes=classes,
            mean=mean,
            std=std,
            threat=customary_threat(shape),
            # No augmentation: nothing is known of what the images show.
            defaults={"epochs": 30, "batch_size": 128},
            fingerprint=fingerprint_of(train, test),
            notes=(f"{file}: left out: {', '.join(others[:5])}; {HELD_OUT}",) if others else (),
        )

    def _class_names(self, file: Path, labels: Mapping[str, Tensor]) -> tuple[str, ...]:
        highest = int(labels["train"].max())
        if self.classes is not None:
            names = tuple(self.classes)
        elif self.num_classes is not None:
            names = tuple(str(number) for number in range(self.num_classes))
        elif gaps := sorted(set(range(min(highest, len(labels["train"])))) - set(labels["train"].tolist())):
            # A stray label among good ones would silently add classes that no image has.
            shown = ", ".join(map(str, gaps[:5])) + (", ..." if len(gaps) > 5 else "")
            raise DataError(
                f"{file}: y_train goes up to {highest}, but no image has the label {shown}; number the classes "
                "from 0 without gaps, or say how many there are with --set data.num_classes=N"
            )
        else:
            names = tuple(str(number) for number in range(highest + 1))
        for part in ("train", "test"):
            low, high = int(labels[part].min()), int(labels[part].max())
            if low < 0 or high >= len(names):
                raise DataError(
                    f"{file}: y_{part} holds the label {low if low < 0 else high}, but there are {len(names)} classes "
                    f"(0 to {len(names) - 1}); if there are more, say so with --set data.num_classes=N"
                )
        return names


def _read(file: Path, names: list[str] | None) -> tuple[dict[str, np.ndarray], list[str]]:
    """The four arrays of the file, called `names` there, by NAMES; and the names of all others."""
    if not file.is_file():
        what = "is a folder, not an .npz file" if file.is_dir() else "does not exist"
        raise DataError(f"data set npz: {file} {what}. Write npz:PATH with the path of a file, or give --data-dir DIR")
    with opened(file, NAMES) as content:
        there = [usual for usual in USUAL if set(usual) <= set(content.files)]
        called = names or (there[0] if there else NAMES)
        missing = [name for name in called if name not in content.files]
        if missing:
            found = ", ".join(content.files[:10]) or "none"
            raise DataError(
                f"{file} lacks {', '.join(missing)}; the arrays there: {found}. Needed: {', '.join(NAMES)}, "
                "or their names there in this order: --set data.arrays='[...]'"
            )
        arrays = {}
        for key, name in zip(NAMES, called, strict=True):
            try:
                arrays[key] = _array(content, name, file)
            except DataError:
                raise
            except Exception as error:  # a cut-off or damaged member, or one with pickled objects
                raise DataError(f"{file}: {name} cannot be read: {first_line(error)}") from error
    return arrays, [name for name in content.files if name not in called]


def _array(content: np.lib.npyio.NpzFile, name: str, file: Path) -> np.ndarray:
    """An array in memory; one that would take more than half of what is free stays in the file, and is mapped."""
    member = content.zip.getinfo(f"{name}.npy")  # type: ignore[union-attr]
    check_size(member, file)
    free = free_memory()
    if member.file_size <= free // 2:
        return content[name]
    if member.compress_type != ZIP_STORED:
        raise DataError(
            f"{file}: {name} unpacks to {member.file_size >> 20:,} MiB, and {free >> 20:,} MiB of memory are free; "
            "write the file with numpy.savez, which does not compress, and it is read batch by batch"
        )
    place, shape, by_columns, dtype = stored_array(file, member)
    return np.memmap(file, dtype, "c", place, shape, "F" if by_columns else "C")


def stored_array(file: Path, member: ZipInfo) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Where the numbers of an array that is not compressed begin in the file; its shape, whether it lies by columns,
    and its type."""
    with open(file, "rb") as opened:
        opened.seek(member.header_offset)
        head = opened.read(30)
        opened.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), os.SEEK_CUR)
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(opened)
        return opened.tell(), shape, by_columns, dtype


def check_size(member: ZipInfo, file: Path) -> None:
    """Raise DataError for an array that unpacks to far more than images do: zeros shrink a thousandfold.

    No more than the size that the archive's directory says is ever unpacked.
    """
    if member.file_size > max(ANY_SIZE, MOST_TIMES * file.stat().st_size):
        raise DataError(
            f"{file}: {member.filename} would unpack to {member.file_size >> 20:,} MiB, more than {MOST_TIMES} times "
            "the file; if the images are real, write the file with numpy.savez, which does not compress"
        )


def opened(file: Path, names: Sequence[str]) -> NpzFile:
    """The file, to be closed. Raises DataError for one that is no .npz file with arrays such as `names`."""
    try:
        content = np.load(file, allow_pickle=False)
    except Exception as error:  # BadZipFile, ValueError (pickles), EOFError, OSError
        raise DataError(f"{file} is not a whole .npz file: {first_line(error)}") from error
    if not isinstance(content, NpzFile):
        raise DataError(f"{file} holds a single array, not the arrays {', '.join(names)} of an .npz file")
    return content


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _labels(array: np.ndarray, what: str) -> Tensor:
    """`(N,)` int64 of integers `(N,)` or `(N, 1)`."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{what} must hold integers (N,), the numbers of the classes; it is {_describe(array)}")
    if len(array) == 0:
        raise DataError(f"{what} is empty")
    return torch.from_numpy(array.astype(np.int64))


def _images(array: np.ndarray, layout: str, what: str) -> Tensor:
    """`(N, C, H, W)` uint8 or float32 in [0, 1]."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{what} must be uint8 (0 to 255) or floats in [0, 1]; it is {_describe(array)}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim != 4:
        raise DataError(f"{what} must be (N, H, W), (N, H, W, C) or (N, C, H, W); it is {_describe(array)}")
    elif (_layout(array, what) if layout == "auto" else layout) == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    if array.size == 0:
        raise DataError(f"{what} holds no pixels: {_describe(array)}")
    mapped = isinstance(array, np.memmap)
    if array.dtype == np.uint8 and array[:1000].max() <= 1:
        raise DataError(f"{what}: 8-bit images go from 0 to 255, and these to 1: write them as floats, or times 255")
    if array.dtype != np.uint8:
        if mapped:
            raise DataError(
                f"{what}: {array.nbytes >> 20:,} MiB of floats do not fit into memory; kept as uint8 (0 to 255) in a "
                "file of numpy.savez, images are read batch by batch"
            )
        array = array.astype(np.float32)
    images = torch.from_numpy(array if mapped else np.ascontiguousarray(array))
    try:
        if images.dtype != torch.uint8:
            check_images(images)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    return compact(images)


def _layout(array: np.ndarray, what: str) -> str:
    """`NHWC` or `NCHW`, where just one of them has 1 or 3 channels."""
    last, second = array.shape[3] in (1, 3), array.shape[1] in (1, 3)
    if last == second:
        why = "both axis 1 and the last axis" if last else "neither axis 1 nor the last axis"
        raise DataError(
            f"{what} is {_describe(array)}: {why} could be 1 or 3 channels; "
            "give --set data.layout=NHWC or --set data.layout=NCHW"
        )
    return "NHWC" if last else "NCHW"


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


@hookimpl
def rkd_datasets() -> dict[str, object]:
    return {"npz:PATH": Family(pattern=r"npz:(?P<path>.+)", component=Npz, examples=("npz:PATH",))}

"""Any folder of images with one folder per class, in torchvision's `ImageFolder` layout.

    PATH/train/CLASS/*.jpg  and  PATH/test/CLASS/*.jpg  (or PATH/val/..., which is left out where both are there)
    PATH/CLASS/*.jpg        a fixed fifth of each class becomes the test part, whatever the run's seed

Parts may be called training, testing, valid, validation or dev, too, in any case. Classes are the sorted names of the
training folders, or those in `classes`; images the sorted paths below them (hidden files left out). Only
greyscale images: one channel; else three (transparency is dropped, the orientation in EXIF ignored, as in torchvision).
Without `size` all images must have one size; with it the shorter side is resized to it, bilinearly, and the centre cut.
All images are decoded once, by threads where that pays, and kept in the cache, which later commands and other processes
map into memory: under a name that follows from the names, lengths and times of all files, Pillow's version and the
options. Where they cannot be kept they are decoded into memory by each command, or batch by batch beyond `memory_mib`.
Mean and std are those of up to 2,000 training images.

References: torchvision2016
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rkd.plugin import (
    ArraySplit,
    ConfigError,
    DataError,
    Dataset,
    Family,
    Shape,
    Split,
    customary_threat,
    fingerprint,
    free_memory,
    hookimpl,
    kept_pixels,
    read_text,
    spread,
    statistics,
)

from ._common import locate
from ._folders import find_images

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""PIL's readers that are let near a file. It goes by content, not by name, and its EPS reader starts Ghostscript."""

MOST_PIXELS = 1 << 26
"""Pixels of an image that is decoded, or resized to: 8192 x 8192. A PNG of a few kilobytes can say it has more."""
MOST_SIDE = 4096
BLOCK = 2**26
"""Bytes of images that are decoded at once on their way into the cache."""

GREY = ("1", "L", "LA")
"""PIL's modes that hold one channel of at most 8 bits (and transparency)."""

THREADS = min(8, os.cpu_count() or 1)
THREADS_FROM = 96 * 96
"""Pixels above which threads pay. Below, they only queue for Python's lock: 32x32 JPEGs decode in 55 us each on one
thread, in 70 to 100 on two to four; 224x224 in 290 and 140 (measured on two cores)."""


@dataclass
class ImageFolder:
    """A folder of images, one folder per class, with or without train/ and test/ above them.

    path: the folder.
    size: side of the square that each image is resized and cut to; by default the images' common size.
    resize: what the shorter side is resized to before the square is cut, such as 256 for 224; by default size.
    exif: whether images are turned as their EXIF orientation says.
    classes: the classes in order, by the names of their folders, or a file with one a line; by default all, sorted.
    memory_mib: up to this size the decoded images are kept in memory (by default half of what is free), beyond it they
        are read batch by batch; 0 decodes every batch from the files.
    cache_gib: at most so much of the disk takes what the cache has of image folders; 0 keeps nothing.
    dir: the folder in which a relative path is looked up.
    download: not used.
    """

    path: str
    size: int | None = None
    resize: int | None = None
    exif: bool = False
    classes: list[str] | str | None = None
    memory_mib: int | None = None
    cache_gib: float = 16.0
    dir: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= MOST_SIDE:
            raise ConfigError(f"data.size must be from 1 to {MOST_SIDE}, got {self.size}")
        if self.resize is not None and not (self.size or MOST_SIDE + 1) <= self.resize <= MOST_SIDE:
            raise ConfigError(f"data.resize needs a smaller data.size, and is at most {MOST_SIDE}, got {self.resize}")
        if self.cache_gib < 0:
            raise ConfigError(f"data.cache_gib must not be negative, got {self.cache_gib:g}")

    def _classes(self, root: Path) -> list[str] | None:
        if not isinstance(self.classes, str):
            return self.classes
        file = locate(self.classes, self.dir)
        names = [line.strip() for line in read_text(file).splitlines()] if file.is_file() else []
        if not any(names):
            raise DataError(f"data.classes: {file} is no file with the names of classes, one a line")
        return [name for name in names if name]

    def __call__(self) -> Dataset:
        root = locate(self.path, self.dir)
        found = find_images(root, self._classes(root))
        parts, notes = found.parts, list(found.notes)
        files = [file for part in parts.values() for file in part[0]]
        shape_of = cache(lambda: self._shape(files))
        kept: np.ndarray | None = None
        if self.cache_gib and self.memory_mib != 0:
            name = self._name(root, files)

            def make() -> tuple[Shape, Iterator[np.ndarray]]:
                return shape_of(), self._blocks(root, files, shape_of(), name)

            kept, why = kept_pixels(name, len(files), int(self.cache_gib * 2**30), make)
            if kept is None:
                notes.append(f"{root}: the decoded images are not kept in the cache (data.cache_gib): {why}")
        channels, height, width = shape = shape_of() if kept is None else kept.shape[1:]
        room = free_memory() // 2 if self.memory_mib is None else self.memory_mib * 2**20
        in_memory = len(files) * math.prod(shape) <= room
        if kept is None and not in_memory and self.size is None:
            _check_sizes(files, (width, height))
        splits: dict[str, Split] = {}
        start = 0
        for name, (names, labels) in parts.items():
            if kept is not None:
                splits[name] = ArraySplit(torch.from_numpy(kept[start : start + len(names)]), labels, in_memory)
                start += len(names)
                continue
            lazy = FileSplit(names, labels, shape, self.size, self.resize, self.exif)
            splits[name] = ArraySplit(lazy.decode(range(len(names))), labels) if in_memory else lazy
        mean, std = statistics(splits["train"], shape)
        augments: dict[str, Any] = {"crop": {"padding": max(1, min(height, width) // 8)}}
        if channels == 3:  # grey folders are mostly characters, and a mirrored one is none
            augments["flip"] = {}
        return Dataset(
            name=f"imagefolder:{self.path}",
            train=splits["train"],
            test=splits["test"],
            shape=shape,
            classes=found.classes,
            mean=mean,
            std=std,
            threat=customary_threat(shape),
            defaults={"epochs": 100, "batch_size": 128, "augments": augments},
            fingerprint=_fingerprint(
                root, parts, (shape, *([self.resize, self.exif] if self.resize or self.exif else []))
            ),
            notes=tuple(notes),
        )

    def _shape(self, files: Sequence[Path]) -> Shape:
        # Stops at the first image in colour, so it is slow (40 us a file) only where all are grey.
        channels = 1 if all(_header(file)[0] in GREY for file in files) else 3
        width, height = (self.size, self.size) if self.size else _header(files[0])[1]
        return channels, height, width

    def _name(self, root: Path, files: Sequence[Path]) -> str:
        """Of the decoded images in the cache: another one when a file or an option changes, or the decoder does."""
        import PIL

        known = [(place, os.stat(file)) for place, file in zip(_below(root, files), files, strict=True)]
        lines = [f"{place} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for place, s in known]
        return fingerprint("decoded 1", PIL.__version__, self.size, self.resize, self.exif, *lines)

    def _blocks(self, root: Path, files: Sequence[Path], shape: Shape, name: str) -> Iterator[np.ndarray]:
        """All images, decoded. Raises OSError at the end if a file has changed meanwhile."""
        lazy = FileSplit(files, torch.zeros(len(files)), shape, self.size, self.resize, self.exif)
        at_once = max(16, BLOCK // math.prod(shape))
        for start in range(0, len(files), at_once):
            yield lazy.decode(range(start, min(start + at_once, len(files)))).numpy()
        if self._name(root, files) != name:
            raise OSError("files changed while they were read")


class FileSplit:
    """Images that are decoded batch by batch. `shape` (C, H, W) is what `decode` makes of each file."""

    in_memory = False

    def __init__(
        self, files: Sequence[Path], labels: Tensor, shape: Shape, size: int | None, resize: int | None = None,
        exif: bool = False,
    ) -> None:  # fmt: skip
        self.files = list(files)
        self.labels = labels
        self.shape = shape
        self.size, self.resize, self.exif = size, resize or size, exif

    def __len__(self) -> int:
        return len(self.files)

    def images(self, index: Tensor) -> Tensor:
        return self.pixels(index).float() / 255

    def pixels(self, index: Tensor) -> Tensor:
        """The same as bytes, for whoever sends them on."""
        return self.decode(index.tolist())

    def decode(self, positions: Sequence[int]) -> Tensor:
        """`(B, C, H, W)` uint8 of the files at `positions`. Raises DataError that names the files it cannot read."""
        images = np.empty((len(positions), *self.shape), dtype=np.uint8)

        def fill(places: range) -> list[str]:
            failures = []
            for place in places:
                try:
                    images[place] = self._pixels(self.files[positions[place]])
                except _Unreadable as error:
                    failures.append(str(error))
            return failures

        chunks = [range(start, min(start + 16, len(positions))) for start in range(0, len(positions), 16)]
        large = len(chunks) > 1 and math.prod(_header(self.files[positions[0]])[1]) >= THREADS_FROM
        if large and THREADS > 1:
            with ThreadPoolExecutor(THREADS) as pool:
                failures = [failure for part in pool.map(fill, chunks) for failure in part]
        else:
            failures = [failure for part in map(fill, chunks) for failure in part]
        if failures:
            more = f"; and {len(failures) - 5} more files" if len(failures) > 5 else ""
            raise DataError(f"images that cannot be read: {'; '.join(failures[:5])}{more}")
        return torch.from_numpy(images)

    def _pixels(self, file: Path) -> np.ndarray:
        """`(C, H, W)` uint8."""
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        try:
            with Image.open(file, formats=FORMATS) as image:
                _check_image(image, file)
                upright = ImageOps.exif_transpose(image) if self.exif else image
                small = upright.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
            raise _Unreadable(_why(file, error)) from error
        if self.size:
            try:
                small = _fit(small, self.size, self.resize or self.size)
            except DataError as error:
                raise DataError(f"{file}: {error}") from None
        elif small.size != (width, height):
            raise DataError(_sizes_differ(file, small.size, (width, height)))
        pixels = np.asarray(small)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class _Unreadable(Exception):
    """One file that PIL cannot read."""


def _header(file: Path) -> tuple[str, tuple[int, int]]:
    """PIL's mode and (width, height) of a file, without decoding it."""
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_image(image, file)
            return image.mode, image.size
    except Exception as error:  # as in FileSplit._pixels
        raise DataError(f"image that cannot be read: {_why(file, error)}") from error


def _check_image(image: Image, file: Path) -> None:
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width}x{image.height}"
        raise DataError(f"{file} says that it has {size} pixels; at most {MOST_PIXELS:,} are read")
    if image.mode[0] in "IF":  # PIL would clip them at 255 without a word
        raise DataError(f"{file} has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")


def _why(file: Path, error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if str(file) in text else f"{file} ({text})"


def _check_sizes(files: Sequence[Path], size: tuple[int, int]) -> None:
    """Raise DataError unless all images have one size, before training starts."""
    for file in files:
        found = _header(file)[1]
        if found != size:
            raise DataError(_sizes_differ(file, found, size))


def _sizes_differ(file: Path, found: tuple[int, int], expected: tuple[int, int]) -> str:
    return (
        f"the images differ in size: {file} is {found[0]}x{found[1]} pixels, the first one "
        f"{expected[0]}x{expected[1]}. Give one size, e.g. --set data.size={min(*found, *expected)}"
    )


def _fit(image: Image, size: int, resize: int) -> Image:
    """The shorter side resized to `resize`, then the square in the middle: torchvision's Resize and CenterCrop."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    if short != resize:
        width, height = int(resize * width / short), int(resize * height / short)
        if width * height > MOST_PIXELS:
            raise DataError(f"an image is too narrow: resized to {resize}, it has {width}x{height} pixels")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _below(root: Path, files: Sequence[Path]) -> list[str]:
    """`file.relative_to(root).as_posix()` of each, at a tenth of the time: these are tens of thousands."""
    start = "" if str(root) == "." else f"{root}{os.sep}"
    return [str(file).removeprefix(start).replace(os.sep, "/") for file in files]


def _fingerprint(root: Path, parts: dict[str, tuple[list[Path], Tensor]], how: tuple[object, ...]) -> str:
    """Of names, lengths and labels of all files and the bytes of some: decoders differ by a grey level or so."""
    pieces: list[object] = [*how] if any(how[1:]) else [how[0]]  # as before there were these options
    for files, labels in parts.values():
        pieces += [f"{place} {os.stat(f).st_size}" for place, f in zip(_below(root, files), files, strict=True)]
        sample = b"".join(files[place].read_bytes() for place in spread(len(files), 64).tolist())
        pieces += [labels, sample.hex()]
    return fingerprint(*pieces)


@hookimpl
def rkd_datasets() -> dict[str, object]:
    family = Family(pattern=r"imagefolder:(?P<path>.+)", component=ImageFolder, examples=("imagefolder:PATH",))
    return {"imagefolder:PATH": family}

"""Decoded images kept in the cache: written whole or not at all, read through memory that processes share."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock

from ..core.types import Shape
from .files import RESERVE, check_file, make_room, remove_abandoned, whole_file
from .remote import cache_folder

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


def kept_pixels(
    name: str, images: int, most: int, make: Callable[[], tuple[Shape, Iterable[Pixels]]]
) -> tuple[Pixels | None, str]:
    """The images `(images, C, H, W)` that the cache has under `name`, mapped into memory: what is written into them
    stays in this process.

    Where it has none, `make` gives their shape (C, H, W) and blocks of them, one after the other; a second process
    waits for the first. All such files together take at most `most` bytes, and the ones that were used the longest ago
    make room. Returns None, and why, where they cannot be kept; what `make` and blocks raise beyond OSError goes on.
    """
    path = cache_folder() / "decoded" / f"{name}.npy"
    if (found := _mapped(path, images)) is not None:
        return found, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        with lock:
            try:
                if (found := _mapped(path, images)) is None:
                    shape, blocks = make()
                    _write(path, (images, *shape), blocks, most)
                    found = _mapped(path, images)
            finally:
                with contextlib.suppress(OSError):  # still held: who waits for a lock without a name finds the file
                    Path(lock.lock_file).unlink(missing_ok=True)
    except OSError as error:
        return None, error.strerror or str(error)
    return found, "" if found is not None else f"{path} cannot be read"


def _mapped(path: Path, images: int) -> Pixels | None:
    try:
        check_file(path)
        # "c": torch wants memory that can be written, and a file stays as it is.
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    with contextlib.suppress(OSError):  # a cache that others have filled may be readable alone
        os.utime(path)  # in use: `make_room` removes the oldest
    whole = found.dtype == np.uint8 and found.ndim == 4 and len(found) == images
    return found if whole else None


def _write(path: Path, shape: tuple[int, ...], blocks: Iterable[Pixels], most: int) -> None:
    size = math.prod(shape)
    if size > most:
        raise OSError(f"they take {size / 2**30:.2f} GiB, and at most {most / 2**30:.2f} are kept")
    remove_abandoned(path.parent)
    make_room(path.parent, "*.npy", size, most)
    if shutil.disk_usage(path.parent).free < size + RESERVE:
        raise OSError("too little of the disk is free")
    with whole_file(path) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        end = file.tell() + size
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
        if file.tell() != end:
            raise OSError("some of them are missing")

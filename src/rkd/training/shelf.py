"""Where teachers' answers are kept, in memory or in a file: logits by place, each under a seal.

A seal is a hash of the image that was asked about, of who was asked (`salt`), and of the answer itself. What does not
match its seal is not there: an answer torn by a crash, a flipped bit, another teacher's file, a file that was cut off,
an augmentation that takes two versions of an image for one. So nothing in a file is believed, processes may write the
same one without a lock, and a loss of power may leave of it whatever it likes.

The file is read and written by position, not mapped into memory: a disk that is full, or a file that somebody cuts off,
is then an error that can be caught, and not the end of the process. It is sparse: places that nobody has come to take
no room.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..core.random import row_hash

SEAL = 2
"""Columns of 32 bits that a seal takes."""
IN_MEMORY = 64 * 2**20
"""Bytes of answers of one teacher that are kept in memory, not in a file."""
RESERVE = 2**30
"""Bytes of a disk that stay free."""


class Rows(Protocol):
    """Rows of 32-bit integers by place. What was never written is 0."""

    def read(self, places: Tensor) -> Tensor: ...

    def write(self, places: Tensor, rows: Tensor) -> None: ...


class InMemory:
    def __init__(self, count: int, width: int) -> None:
        self._rows = torch.zeros(count, width, dtype=torch.int32)

    def read(self, places: Tensor) -> Tensor:
        return self._rows[places]

    def write(self, places: Tensor, rows: Tensor) -> None:
        self._rows[places] = rows


class Nowhere:
    """Keeps nothing."""

    def __init__(self, width: int) -> None:
        self._width = width

    def read(self, places: Tensor) -> Tensor:
        return torch.zeros(len(places), self._width, dtype=torch.int32)

    def write(self, places: Tensor, rows: Tensor) -> None: ...


class InFile:
    """`failed` is told, once, of an error of the system; from then on there is nothing, and nothing is kept."""

    def __init__(self, path: Path, width: int, failed: Callable[[str], None]) -> None:
        self._width, self._failed = width, failed
        self._file: FileIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)
            os.utime(path)  # in use: `make_room` removes the oldest
        except OSError as error:
            self._give_up(error)

    def read(self, places: Tensor) -> Tensor:
        rows = torch.zeros(len(places), self._width, dtype=torch.int32)
        if self._file is not None:
            try:
                for row, place in zip(rows.numpy(), places.tolist(), strict=True):
                    self._file.seek(place * self._width * 4)
                    self._file.readinto(row)
            except OSError as error:
                self._give_up(error)
                rows.zero_()
        return rows

    def write(self, places: Tensor, rows: Tensor) -> None:
        if self._file is None:
            return
        try:
            for row, place in zip(rows.contiguous().numpy(), places.tolist(), strict=True):
                self._file.seek(place * self._width * 4)
                self._file.write(row.tobytes())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._failed(error.strerror or str(error))
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None


class Answers:
    """Logits `(classes,)` by place. `salt` says whose they are."""

    def __init__(self, rows: Rows, classes: int, salt: int) -> None:
        self._rows, self._classes, self._salt = rows, classes, salt

    def read(self, places: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answers `(B, classes)` at `places (B,)`, and which of them are there, `(B,)`. `images`: hashes `(B,)` of what
        was asked about."""
        rows = self._rows.read(places)
        values, seals = rows.split([self._classes, SEAL], 1)
        return values.contiguous().view(torch.float32), (seals == self._seals(values, images)).all(1)

    def write(self, places: Tensor, images: Tensor, answers: Tensor) -> None:
        values = answers.contiguous().view(torch.int32)
        self._rows.write(places, torch.cat([values, self._seals(values, images)], 1))

    def _seals(self, values: Tensor, images: Tensor) -> Tensor:
        halves = images.unsqueeze(1).contiguous().view(torch.int32)
        seals = row_hash(torch.cat([halves, values], 1), self._salt)
        return seals.unsqueeze(1).contiguous().view(torch.int32)


@dataclass
class Shelf:
    """Where the answers of a run's teachers go: files in `folder` of together at most `most` bytes, older ones making
    room; without a folder, memory. `tell` is told what becomes of it."""

    most: int
    folder: Path | None = None
    tell: Callable[[str], None] = lambda text: None
    promised: int = 0
    """Bytes that teachers were promised."""
    _used: set[Path] = field(default_factory=set)

    def rows(self, who: str, salt: int, count: int, classes: int) -> Rows:
        """Room for `count` answers."""
        size = size_of(count, classes)
        if self.folder is None or size <= IN_MEMORY:
            return InMemory(count, classes + SEAL)
        path = self.folder / f"{salt:016x}.answers"
        there = path.stat().st_size if path.is_file() else 0
        make_room(self.folder, size - there, self.most, {*self._used, path})
        self._used.add(path)

        def failed(why: str) -> None:
            self.tell(f"{who}: its answers are not kept any more ({path}: {why})")

        if _free(self.folder) < size - there + RESERVE:
            failed("too little of the disk is free")
            return Nowhere(classes + SEAL)
        self.tell(f"{who}: answers to clean images are kept in {path}, at most {size / 2**30:.2g} GiB")
        return InFile(path, classes + SEAL, failed)


def size_of(count: int, classes: int) -> int:
    """Bytes of so many answers."""
    return 4 * count * (classes + SEAL)


def make_room(folder: Path, size: int, most: int, keep: set[Path]) -> None:
    """Remove the files of `folder` that were used the longest ago until there is room for `size` bytes of `most`.

    Whoever is using one of them goes on with it, and has its room until it ends. `keep` stay.
    """
    with contextlib.suppress(OSError):  # another process may be at it as well
        files = [path for path in folder.glob("*.answers") if path.is_file() and not path.is_symlink()]
        taken = {path: path.stat() for path in files}
        total = sum(found.st_size for found in taken.values())
        for path in sorted(files, key=lambda path: taken[path].st_mtime):
            if total + size <= most:
                return
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= taken[path].st_size


def _opened(path: Path) -> FileIO:
    """The file for reading and writing, made if it is not there; an ordinary one, and through no link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no file")
    return open(handle, "r+b", buffering=0)


def _free(folder: Path) -> int:
    """Bytes of the disk that a folder is on, or will be on."""
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    except OSError:
        return 0

"""Logits of images, by row number, in memory or in a file that several processes write without a lock."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import blake2b
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..storage.files import RESERVE, open_to_change

CHECKSUM = 2
"""32-bit columns of a row's checksum."""

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class LogitStore:
    """Float32 logits `(classes,)` by row number, in memory, or in a file that other processes and later runs share.

    Each row has a checksum of its number, its logits and their owner; without a valid one it is missing: torn by a
    crash, damaged, cut off, another teacher's. So nothing in a file is trusted, and processes write to the same one
    without a lock. It is sparse: rows that were never written take no room.

    The file is read and written by position. (Mapped into memory, a full disk or a file that somebody cuts off would
    kill the process with SIGBUS.) After the first error nothing is kept any more, and `failed` is told why.
    """

    def __init__(
        self,
        rows: int,
        classes: int,
        owner: int,
        path: Path | None = None,
        failed: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._classes, self._owner, self._failed = classes, owner, failed
        self._file: FileIO | BytesIO | None = None
        with self._errors():
            self._file = BytesIO() if path is None else _open(path, answer_bytes(rows, classes))

    def read(self, rows: Rows) -> tuple[Tensor, Rows]:
        """The logits `(B, classes)` at `rows (B,)`, and the positions in `rows` of those that are missing."""
        content = np.zeros((len(rows), self._classes + CHECKSUM), np.int32)
        with self._errors():
            for row, number in zip(content, rows.tolist(), strict=True):
                if self._file is not None:
                    self._file.seek(number * row.nbytes)
                    self._file.readinto(row.data)
        values, checksums = np.split(content, [self._classes], 1)
        missing = np.flatnonzero((checksums != self._checksums(rows, values)).any(1))
        return torch.from_numpy(values.copy()).view(torch.float32), missing

    def write(self, rows: Rows, logits: Tensor) -> None:
        """Keep `logits (B, classes)` at `rows (B,)`."""
        values = logits.contiguous().numpy().view(np.int32)
        content = np.concatenate([values, self._checksums(rows, values)], 1)
        with self._errors():
            for row, number in zip(content, rows.tolist(), strict=True):
                if self._file is not None:
                    self._file.seek(number * row.nbytes)
                    self._file.write(row.tobytes())

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _checksums(self, rows: Rows, values: Any) -> Any:
        contents = (b"%d %d " % (self._owner, n) + v.tobytes() for n, v in zip(rows.tolist(), values, strict=True))
        digests = b"".join(blake2b(content, digest_size=4 * CHECKSUM).digest() for content in contents)
        return np.frombuffer(digests, np.int32).reshape(len(rows), CHECKSUM)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed(error.strerror or str(error))
            self.close()


def answer_bytes(rows: int, classes: int) -> int:
    """Bytes of so many answers."""
    return 4 * rows * (classes + CHECKSUM)


def _open(path: Path, size: int) -> FileIO:
    """A file with room for `size` bytes, made if it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < size - size_of(path) + RESERVE:
        raise OSError("too little of the disk is free")
    file = open_to_change(path)
    os.utime(file.fileno())  # in use: `make_room` removes the oldest
    return file


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0

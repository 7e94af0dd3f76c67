"""Finished batches of an evaluation, kept so that a killed one goes on where it was."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..core.errors import RkdError
from ..storage.files import check_no_link, write_atomic
from ..storage.serialize import pack, unpack

MONTH = 30 * 24 * 3600.0
"""Seconds."""


class Journal:
    """Under `root` a folder for each evaluation, named by what is evaluated, with one file a batch.

    One object serves several evaluations, one after the other. Two processes may write the same one: a file is written
    as a whole, and both would write the same. `kept`: seconds after which another evaluation in the folder that was not
    continued is removed; None: never.
    """

    def __init__(self, root: Path | str, kept: float | None = None) -> None:
        self.root = Path(root)
        self.kept = kept
        self.path = self.root
        self._opened: list[Path] = []

    def open(self, fingerprint: str) -> int:
        """How many batches of that evaluation are finished already. Raises RkdError if the folder cannot be made."""
        self.path = self.root / fingerprint
        for folder in (self.root, self.path):
            check_no_link(folder)
        self._opened.append(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.utime(self.path)
        except OSError as error:
            raise RkdError(f"cannot make the folder {self.path}: {error.strerror}") from None
        if self.kept is not None:
            self._prune(time.time() - self.kept)
        return sum(1 for _ in self.path.glob("*.safetensors"))

    def read(self, name: str, number: int) -> dict[str, Tensor] | None:
        """Batch `number` of the attack `name`, or None where there is none, or a broken one."""
        path = self._file(name, number)
        if path.is_symlink() or not path.is_file():
            return None
        try:
            return unpack(path)[0]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def write(self, name: str, number: int, record: Mapping[str, Tensor]) -> None:
        """Keep a batch. Raises RkdError if the disk is full."""
        with suppress(OSError):  # another process may have pruned it; what cannot be made, cannot be written either
            self.path.mkdir(exist_ok=True)
        write_atomic(self._file(name, number), pack(record))

    def close(self) -> None:
        """Remove the batches of all evaluations that were opened, whose results are kept by now."""
        for path in self._opened:
            shutil.rmtree(path, ignore_errors=True)
        self._opened.clear()
        with suppress(OSError):  # others' evaluations may be there
            self.root.rmdir()

    def _prune(self, oldest: float) -> None:
        """Remove evaluations that were killed and not continued since `oldest`: folders that are called like a
        fingerprint. Opening one makes it new again; one that is opened in the very moment of its removal begins anew.
        """
        with suppress(OSError):  # another process may be at it as well
            for path in list(self.root.iterdir()):
                ours = re.fullmatch(r"[0-9a-f]{32}", path.name) and path.is_dir() and not path.is_symlink()
                if ours and path != self.path and path.stat().st_mtime < oldest:
                    shutil.rmtree(path, ignore_errors=True)

    def _file(self, name: str, number: int) -> Path:
        # A plugin's name may hold any character: the file is called by its hash.
        return self.path / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{number:06d}.safetensors"


def fingerprint(*parts: object) -> str:
    """A hash of texts, numbers and tensors."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous()
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.flatten().view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]

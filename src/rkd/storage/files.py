"""Files that survive a crash: written whole or not at all. No torch here: reports read run folders without it."""

import contextlib
import os
from pathlib import Path

from ..core.errors import RkdError


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old content or all of the new, also after a loss of power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Never through what lies there: a stranger's folder may hold a link of this very name.
        _remove(temporary)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise RkdError(f"cannot write {path}: {_reason(path, error)}") from None
    except BaseException:  # a second Ctrl-C
        _remove(temporary)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file and wait until the disk has it. Raises RkdError."""
    try:
        with open(path, "a", encoding="utf-8", opener=_no_links) as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RkdError(f"cannot write {path}: {_reason(path, error)}") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last beyond a loss of power, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some network disks sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes were writing. Only for who holds the folder alone."""
    for path in folder.glob(".*.tmp"):
        _remove(path)


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _reason(path: Path, error: OSError) -> str:
    words = error.strerror or str(error)
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"{words}: the folder {path.parent} is gone (deleted or moved in the meantime?)"
    return words

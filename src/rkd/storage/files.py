"""Files: read only where one is a file, written whole or not at all. No torch: reports read run folders without it.

A stranger decides what lies in a folder: a FIFO is waited for without end, a link leads anywhere. So rkd opens files by
the functions of this module alone, and gives a path to another library's reader after `check_file`.
"""

import contextlib
import errno
import os
import platform
import re
import shutil
import stat
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ..core.errors import RkdError

MOST_TENSORS = 50_000
"""Tensors of a file that is read; a million empty ones take a minute and a gigabyte."""
RESERVE = 2**30
"""Bytes of a disk that caches leave free."""
MOST_HEADER = 64 << 20
"""Bytes of a file's names, shapes and state, which are kept as Python's objects."""

_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"


def cache_folder() -> Path:
    """Of all that can be made or fetched again (prepared teachers, journals, downloads): `RKD_CACHE`, else
    `$XDG_CACHE_HOME/rkd`, else `~/.cache/rkd`."""
    if "RKD_CACHE" in os.environ:
        return Path(os.environ["RKD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rkd"


def open_file(path: Path | str) -> BinaryIO:
    """A regular file, for reading. Raises OSError, also for a FIFO, a socket or a device: at once, without a wait."""
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def open_to_append(path: Path | str) -> BinaryIO:
    """A regular file, for adding to its end, made if it is missing. Raises OSError, also for a link."""
    return os.fdopen(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINKS), "ab")


def open_to_change(path: Path | str) -> FileIO:
    """A regular file, for reading and writing by position and without a buffer, made if it is missing. Raises OSError,
    also for a link."""
    return FileIO(_open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS), "r+")


def check_file(path: Path | str) -> None:
    """Raise OSError where `open_file` would."""
    open_file(path).close()


def check_safetensors(path: Path) -> None:
    """Raise OSError unless a safetensors reader may open `path`, ValueError for more in it than is read."""
    with open_file(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MOST_HEADER:
            raise ValueError(f"its header has {size:,} bytes; at most {MOST_HEADER:,} are read")
        count = file.read(size).count(b'"data_offsets"')
        if count > MOST_TENSORS:
            raise ValueError(f"it holds {count:,} tensors; at most {MOST_TENSORS:,} are read")


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old content or all of the new, also after a loss of power."""
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise RkdError(f"cannot write {path}: {_reason(path, error)}") from None


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to be written inside, which gets the name `path` at the end, once the disk has it. Raises OSError."""
    temporary = _temporary(path)
    try:
        # Never through what lies there: a stranger's folder may hold a link of this very name.
        _remove(temporary)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # also a second Ctrl-C
        _remove(temporary)
        raise
    sync_folder(path.parent)


def make_room(folder: Path, pattern: str, size: int, max_bytes: int, keep: Collection[Path] = ()) -> None:
    """Remove the files of `folder` that were used the longest ago until `size` more bytes make at most `max_bytes`.

    A process that is using one of them goes on with it, and has its room until it ends. `keep` stay.
    """
    with contextlib.suppress(OSError):  # another process may be at it as well
        files = {p: p.stat() for p in folder.glob(pattern) if p.is_file() and not p.is_symlink()}
        total = sum(status.st_size for status in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime):
            if total + size <= max_bytes:
                return
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= files[path].st_size


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to be filled inside, which gets the name `path` at the end, when it is whole. Raises OSError where
    it cannot be made, FileExistsError where something but an empty folder lies there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    work = _temporary(path)
    try:
        _remove(work)
        work.mkdir()
        yield work
        if path.is_symlink() or not _is_free(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with contextlib.suppress(FileNotFoundError):  # not every system renames onto an empty folder
            path.rmdir()
        work.rename(path)
    except BaseException:
        _remove(work)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file and wait until the disk has it. Raises RkdError."""
    try:
        with open_to_append(path) as file:
            file.write(f"{line}\n".encode())
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


def remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine were writing that are gone. For a folder that others may write into."""
    if sys.platform == "win32":
        return  # where os.kill(number, 0) is no question
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = re.fullmatch(rf"\..+\.{_HOST}-(\d{{1,9}})\.tmp", path.name)
            if match and _is_gone(int(match[1])):
                _remove(path)


def check_no_link(path: Path) -> None:
    """Raise RkdError where a link lies in a folder that is written into."""
    if path.is_symlink():
        raise RkdError(f"{path} is a link to somewhere else: nothing is written there; remove it first")


def _open(path: Path | str, flags: int) -> int:
    # Without O_NONBLOCK a FIFO is waited for as soon as it is opened.
    try:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        words = {errno.ELOOP: "it is a link", errno.ENXIO: "it is a FIFO, a socket or a device, no file"}
        raise OSError(error.errno, words.get(error.errno or 0, error.strerror), str(path)) from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'a device')}, no file", str(path))
    return handle


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp")


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # another user's
    return False


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _reason(path: Path, error: OSError) -> str:
    words = error.strerror or str(error)
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"{words}: the folder {path.parent} is gone (deleted or moved in the meantime?)"
    return words

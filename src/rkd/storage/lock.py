"""One process at a time works on a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder

from ..workflow.resume import before_of


@contextmanager
def alone(folder: RunFolder) -> Iterator[None]:
    """Inside, no other process trains or continues this run. The system frees the lock of a process that is killed.

    Raises RkdError if another one is at it.
    """
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = before_of(folder).get("process")
        raise RkdError(
            f"another process{f' ({who})' if who else ''} is working on {folder.path}; wait for it, or stop it"
        ) from None
    except OSError as error:
        raise RkdError(f"cannot write into {folder.path}: {error.strerror or error}") from None
    try:
        yield
        # Still held: whoever has opened the file meanwhile gets a lock without a name, and finds the run finished.
        with contextlib.suppress(OSError):
            folder.lock.unlink(missing_ok=True)
    finally:
        lock.release()

"""One process at a time works on a run."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder


@contextmanager
def run_lock(folder: RunFolder) -> Iterator[None]:
    """Inside, no other process trains or continues this run. The system frees the lock of a process that is killed.

    Raises RkdError if another one is at it.
    """
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RkdError(
            f"another process{_holder(folder)} is working on {folder.path}; wait for it, or stop it"
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


def _holder(folder: RunFolder) -> str:
    """` (NUMBER on MACHINE)` of the process that began the run, as far as its manifest can be read."""
    with contextlib.suppress(RkdError, AttributeError):
        if process := folder.read_json(folder.manifest).get("process"):
            return f" ({process})"
    return ""

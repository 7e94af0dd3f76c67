"""What the C library does with freed memory, and how OpenMP's threads wait: both decide the speed of a CPU.

A training step frees and asks for the same megabytes again and again. By default glibc maps each large block anew and
gives it back at once, and the system has to fill every page of it with zeros on first touch. Nothing here changes a
number that is computed.
"""

from __future__ import annotations

import ctypes
import os

SWITCH = "RKD_ALLOCATOR"
"""Environment variable; `system` leaves the allocator as it is."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
_LARGE = 1 << 30
_OLD_LIMIT = 32 << 20  # what glibc before 2.35 accepts for the second

WORTH = 5.0
"""Seconds of work for each GiB that is free, from which on giving it back is a small part of that work: the pages take
a third of a second to come again, on the machine where this was tried."""

_kept: ctypes.CDLL | None = None
"""The C library that was told to keep memory."""


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors give back instead of returning it to the system. Returns whether it does.

    For the whole process, and best before the first large tensor. Blocks up to 1 GiB come from the heap, whose top
    stays when it is free. Does nothing under another C library (macOS, Windows, musl), where another allocator was
    loaded in front of it, or where the environment says `RKD_ALLOCATOR=system`. Buffers of a GPU are not concerned.
    """
    if os.environ.get(SWITCH) == "system":
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl has a mallopt too, which does nothing
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    if not (kept and mallopt(_TRIM_THRESHOLD, _LARGE)):
        return False
    global _kept
    _kept = libc
    return True


def give_back(seconds: float) -> bool:
    """Give what is free to the system, if it was kept and if `seconds` of work went by since the last time that make
    up for it. Returns whether it was done.

    Between a search and the training that follows, what is free lies in holes between what is not, and much of it in
    pieces that fit nothing to come: kept, it would be there besides the training's memory.
    """
    if _kept is None:
        return False
    try:
        counted = _kept.mallinfo2
    except AttributeError:  # glibc before 2.33
        return False
    counted.restype = _Counted
    if seconds < WORTH * counted().fordblks / (1 << 30):
        return False
    return bool(_kept.malloc_trim(ctypes.c_size_t(0)))


class _Counted(ctypes.Structure):
    """glibc's `struct mallinfo2`; `fordblks`: bytes of the heap that are free."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def wait_briefly() -> None:
    """Let OpenMP's threads wait for one another actively for a fraction of a millisecond, then sleep.

    To be called before torch is imported; settings in the environment (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`) stand.
    Threads that sleep at once wake late for the next of many short operations, which costs an idle machine; on one that
    is busy with something else too they are the fastest. docs/results/overhead.md has both.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # of GNU's library, which torch brings; its own is 300000

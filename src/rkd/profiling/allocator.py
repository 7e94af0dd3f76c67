"""What the C library does with freed memory: it decides the speed of a CPU's training step.

A training step frees and asks for the same megabytes again and again. By default glibc maps each large block anew and
gives it back at once, and the system has to fill every page of it with zeros on first touch. Nothing here changes a
number that is computed.
"""

import ctypes
import os

SWITCH = "RKD_ALLOCATOR"
"""Environment variable; `system` leaves the allocator as it is."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
_LARGE = 1 << 30
_OLD_LIMIT = 32 << 20  # what glibc before 2.35 accepts for the second


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
    return bool(kept and mallopt(_TRIM_THRESHOLD, _LARGE))

"""What the C library does with freed memory, and how OpenMP's threads wait: both decide the speed of a CPU.

A training step frees and asks for the same megabytes again and again. By default glibc maps each large block anew and
gives it back at once, and the system has to fill every page of it with zeros on first touch. Nothing here changes a
number that is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping

SWITCH = "RKD_ALLOCATOR"
"""Environment variable; `system` leaves the allocator as it is."""
TUNABLES = "GLIBC_TUNABLES"
"""glibc's own environment variable: name=value, separated by colons."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
_LARGE = 1 << 30
_OLD_LIMIT = 32 << 20  # what glibc before 2.35 accepts for the second

_SETTINGS = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"}
"""torch asks for blocks that begin at multiples of 64 bytes. glibc cuts such a block out of a larger one, and puts what
is left into lists of small pieces, which are not joined with their neighbours: when the block is free again, another
of the same size does not fit. Without these lists it mostly does."""


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


def settled(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the settings of glibc that hold from a process's start alone, for one that trains: blocks
    that were given back fit again, and memory does not grow by holes. A setting that is there stays."""
    given = environment.get(TUNABLES, "")
    known = {setting.partition("=")[0] for setting in given.split(":")}
    added = [f"{name}={value}" for name, value in _SETTINGS.items() if name not in known]
    return {**environment, TUNABLES: ":".join([*filter(None, [given]), *added])} if added else dict(environment)


def start_settled() -> None:
    """Start this process anew, as what it is, with `settled` in its environment; for a program's first line.

    Returns where that was done already, where there is no glibc or another order was given (`RKD_ALLOCATOR=system`),
    and where the system does not let it. Whatever the process did before is lost or done twice: it must be nothing.
    """
    environment = settled(os.environ)
    if environment == dict(os.environ) or os.environ.get(SWITCH) == "system" or not sys.executable:
        return
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return
    with contextlib.suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wait_briefly() -> None:
    """Let OpenMP's threads wait for one another actively for a fraction of a millisecond, then sleep.

    To be called before torch is imported; settings in the environment (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`) stand.
    Threads that sleep at once wake late for the next of many short operations, which costs an idle machine; on one that
    is busy with something else too they are the fastest. docs/results/overhead.md has both.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # of GNU's library, which torch brings; its own is 300000

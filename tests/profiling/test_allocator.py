"""What is asked of the C library: in processes of their own, since it holds for a whole process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from rkd.profiling import allocator

FAULTS = """
import resource, sys
from rkd.profiling.allocator import keep_freed_memory
kept = keep_freed_memory()
before = None
for _ in range(20):
    if _ == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    block[::4096] = bytes(len(block) // 4096)
    del block
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    kept, count = done.stdout.split()
    return kept, int(count)


def is_glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    except (OSError, TypeError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not is_glibc(), reason="glibc alone is spoken to")
def test_blocks_come_back_without_new_pages() -> None:
    kept, few = faults()
    left, many = faults(RKD_ALLOCATOR="system")
    assert (kept, left) == ("True", "False")
    # 18 times 64 MiB are 294,912 pages of 4 KiB; huge pages make fewer faults of them.
    assert few < 100 < many


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert allocator.keep_freed_memory() is False

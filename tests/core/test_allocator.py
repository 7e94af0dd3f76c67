"""What is asked of the C library: in processes of their own, since it holds for a whole process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from rkd.core import allocator

FAULTS = """
import resource, sys
from rkd.core.allocator import keep_freed_memory
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


@pytest.mark.skipif(not is_glibc(), reason="glibc alone is spoken to")
def test_blocks_come_back_without_new_pages() -> None:
    kept, few = faults()
    left, many = faults(RKD_ALLOCATOR="system")
    assert (kept, left) == ("True", "False")
    # 18 times 64 MiB are 294,912 pages of 4 KiB; huge pages make fewer faults of them.
    assert few < 100 < many


HOLES = """
from rkd.core import allocator

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

early = allocator.give_back(1000.0)
allocator.keep_freed_memory()
blocks = [bytearray(b"x" * (4 << 20)) for _ in range(64)]
del blocks[::2]
full = resident()
soon = allocator.give_back(0.1)
print(early, soon, allocator.give_back(1000.0), full - resident())
"""


@pytest.mark.skipif(not (is_glibc() and hasattr(ctypes.CDLL(None), "mallinfo2")), reason="of glibc from 2.33 on")
def test_holes_are_given_back_after_enough_work() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    early, soon, late, given = done.stdout.split()
    # Never where nothing is kept, and not after a tenth of a second's work.
    assert (early, soon, late) == ("False", "False", "True")
    assert int(given) > 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_users_own_waiting_policy_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for each in names:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "7")
    allocator.wait_briefly()
    assert {each: os.environ.get(each) for each in names} == dict.fromkeys(names) | {name: "7"}
    monkeypatch.delenv(name)
    allocator.wait_briefly()
    assert os.environ.pop("GOMP_SPINCOUNT") == "30000" and "OMP_WAIT_POLICY" not in os.environ

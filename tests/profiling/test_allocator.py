"""What is asked of the C library: in processes of their own, since it holds for a whole process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rkd import cli
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


@pytest.mark.skipif(not is_glibc(), reason="glibc alone is spoken to")
def test_blocks_come_back_without_new_pages() -> None:
    kept, few = faults()
    left, many = faults(RKD_ALLOCATOR="system")
    assert (kept, left) == ("True", "False")
    # 18 times 64 MiB are 294,912 pages of 4 KiB; huge pages make fewer faults of them.
    assert few < 100 < many


HOLES = """
import ctypes

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
from rkd.profiling.allocator import keep_freed_memory

keep_freed_memory()

class Counted(ctypes.Structure):
    _fields_ = [(str(place), ctypes.c_size_t) for place in range(10)]

libc.mallinfo2.restype = Counted

def block(size):
    found = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(found), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
    return found

def grown():
    sizes = [4 << 20, 8 << 20, 2 << 20] * 8
    for _ in range(5):
        blocks = []
        for size in sizes:
            blocks.append(block(size))
            held = [libc.malloc(ctypes.c_size_t(small)) for small in (24, 40, 56, 72, 88)]
            for each in held:
                libc.free(ctypes.c_void_p(each))
        for each in blocks[::2] + blocks[1::2]:
            libc.free(each)
    return getattr(libc.mallinfo2(), "0") >> 20

print(grown())
"""


@pytest.mark.skipif(not (is_glibc() and hasattr(ctypes.CDLL(None), "mallinfo2")), reason="of glibc from 2.33 on")
def test_blocks_fit_again_where_they_were() -> None:
    bare = {name: value for name, value in os.environ.items() if name != allocator.TUNABLES}
    done = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, env=allocator.settled(bare)
    )
    assert int(done.stdout) < 125  # MiB, of which 112 are held at once


START = """
import os, sys
from rkd.profiling.allocator import start_settled
start_settled()
print(os.getpid(), sys.argv[1:], os.environ["GLIBC_TUNABLES"], sys.flags.optimize)
"""


@pytest.mark.skipif(not is_glibc(), reason="glibc alone is spoken to")
def test_a_process_starts_anew_as_what_it_was(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(START)
    bare = os.environ | {allocator.TUNABLES: "glibc.malloc.mxfast=64"}
    with subprocess.Popen(
        [sys.executable, "-O", script, "a b", "--c"], stdout=subprocess.PIPE, text=True, env=bare
    ) as process:
        said, _ = process.communicate()
    tunables = "glibc.malloc.mxfast=64:glibc.malloc.tcache_count=0"
    assert said.strip() == f"{process.pid} ['a b', '--c'] {tunables} 1"


def test_a_process_is_not_started_anew_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(environment))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.delenv(allocator.TUNABLES, raising=False)
    monkeypatch.setenv(allocator.SWITCH, "system")
    allocator.start_settled()
    assert not started
    monkeypatch.delenv(allocator.SWITCH)
    allocator.start_settled()
    assert len(started) == 1
    monkeypatch.setenv(allocator.TUNABLES, started[0][allocator.TUNABLES])
    allocator.start_settled()
    assert len(started) == 1


@pytest.mark.parametrize(("command", "anew"), [("run", True), ("bench", True), ("cite", False), ("report", False)])
def test_commands_that_compute_start_anew(monkeypatch: pytest.MonkeyPatch, command: str, anew: bool) -> None:
    said: list[str] = []
    monkeypatch.setattr(cli, "start_settled", lambda: said.append("anew"))
    monkeypatch.setattr(cli, "main", lambda: said.append("main"))
    monkeypatch.setattr(sys, "argv", ["rkd", command])
    cli.start()
    assert said == (["anew", "main"] if anew else ["main"])


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

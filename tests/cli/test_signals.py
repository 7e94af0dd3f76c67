"""Ctrl-C and SIGTERM: those that some callback swallowed, and real processes, really killed, whose run ends bit for bit
where it would have.

A few kills; `benchmarks/reliability.py` does it many times (docs/reliability.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rkd.cli.signals import Interrupts, Terminated
from rkd.storage.runfolder import RunFolder

from .conftest import TINY, digest


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    signal.getsignal(signal.SIGINT)  # some bytecode, at which Python looks for signals


def test_it_is_raised_at_once_and_remembered() -> None:
    interrupts = Interrupts()
    interrupts.check()
    before = signal.getsignal(signal.SIGINT)
    with interrupts.noted():
        with contextlib.suppress(KeyboardInterrupt):  # as C code does with a callback's error
            press()
            pytest.fail("not raised")
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_get_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work() -> None:
        with Interrupts().noted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_further_sigterm_says_nothing_new() -> None:
    """torchrun's agent sends two: the second one stopped at once, with the work since the last checkpoint lost."""
    before = signal.getsignal(signal.SIGTERM)
    told = []
    interrupts = Interrupts(lambda: told.append(True))
    interrupts.gentle = True
    try:
        with pytest.raises(Terminated), interrupts.noted():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                signal.getsignal(signal.SIGTERM)  # some bytecode, as in `press`
            assert told == [True]
            interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)  # while the last message is written
        signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_whose_interrupt_was_swallowed_ends_after_the_step(rkd) -> None:
    """A plugin that throws KeyboardInterrupt away stands for the C code that does."""
    Path("deaf.py").write_text(
        "import os, signal\n"
        "from rkd import hookimpl\n\n\n"
        "class Deaf:\n"
        '    """Presses Ctrl-C, and swallows what comes of it."""\n\n'
        "    @hookimpl\n"
        "    def rkd_attack_query(self, step, view, logits):\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            signal.getsignal(signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n\n\n"
        "@hookimpl\n"
        "def rkd_extensions():\n"
        '    return {"deaf": Deaf}\n'
    )
    words = ("run", "--plugin", "deaf.py", "--with", "deaf", "--loss", "pgd-at", "--epochs", "2", "--no-report")
    said = rkd(*words, "--set", "student.width=4", "--set", "attack.steps=2", "--set", "validate.limit=50")
    assert said.exit_code == 130
    assert "error: interrupted" in said.stderr


# Real processes, really killed

SLOW = """
import os, time
from dataclasses import dataclass
from rkd import hookimpl

@dataclass
class Slow:
    "Takes its time, so that a test can do something meanwhile."

    @hookimpl
    def rkd_after_update(self, run):
        if "MARK" in os.environ:
            open(os.environ["MARK"], "w").close()
        time.sleep(float(os.environ.get("SLOW", 0)))

@hookimpl
def rkd_extensions():
    return {"slow": Slow}
"""
WORDS = (*TINY, "--epochs", "4", "--with", "ema", "--with", "slow", "--set", "checkpoint.minutes=0.001")

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def start(*words: str | Path, **settings: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own; what it says goes into the file `said`."""
    with open("said", "w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", "from rkd.cli import main; main()", *map(str, words)],
            stdout=said, stderr=said, env=os.environ | {"SLOW": "0.03", "OMP_NUM_THREADS": "1"} | settings,
        )  # fmt: skip


def said() -> str:
    return Path("said").read_text()


def until(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not there():
        assert process.poll() is None and time.monotonic() < end, said()
        time.sleep(0.01)


@pytest.mark.slow
@POSIX
def test_killed_terminated_and_interrupted_it_ends_where_it_would_have(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    run = ("run", "--plugin", plugin)
    whole = rkd(*run, "--loss", "pgd-at", *WORDS, "--name", "whole")
    assert whole.exit_code == 0, whole.stderr
    folder = RunFolder("runs/part")

    def further(steps: int) -> Callable[[], bool]:
        before = folder.place() or (0, 0, 21)

        def there() -> bool:
            now = folder.place()
            return now is not None and 21 * (now[0] - before[0]) + now[1] - before[1] >= steps

        return there

    process = start(*run, "--loss", "pgd-at", *WORDS, "--name", "part")
    until(process, further(8))
    second = rkd(*run, "--resume", "runs/part")
    assert second.exit_code == 2
    assert f"another process ({process.pid} on " in second.stderr and "is working on runs/part" in second.stderr
    process.kill()
    process.wait()

    process = start(*run, "--resume", "runs/part")
    until(process, further(5))
    process.terminate()
    process.terminate()
    assert process.wait(timeout=300) == 143, said()
    place = folder.place()
    assert place is not None and place[1] > 0, "it has saved within the epoch"
    assert "stopping after this step; Ctrl-C once more stops at once" in said()
    assert said().endswith(
        f"error: terminated\n  runs/part holds the state after step {place[1]}/21 of epoch {place[0] + 1}\n"
        f"  continue with: rkd run --resume runs/part --plugin {plugin}\n"
    )
    assert json.loads(folder.manifest.read_text())["status"] == "interrupted"

    # A step that would take a quarter of an hour: the first Ctrl-C waits for its end, the second does not.
    process = start(*run, "--resume", "runs/part", SLOW="1000", MARK="slow.mark")
    until(process, Path("slow.mark").exists)
    process.send_signal(signal.SIGINT)
    until(process, lambda: "once more stops at once" in said())
    before = folder.place()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130, said()
    assert "error: interrupted" in said()
    assert folder.place() == before, "nothing more was saved"

    last = rkd(*run, "--resume", "runs/part")
    assert last.exit_code == 0, last.stderr
    # A termination in an epoch's last step leaves an epoch that the next process closes at once.
    where = f"step {place[1]}/21 of epoch {place[0] + 1} of 4" if place[1] < 21 else f"epoch {place[0] + 1} of 4"
    assert f"continuing after {where}" in last.stderr
    assert digest(Path("runs/part")) == digest(Path("runs/whole"))
    assert json.loads(folder.manifest.read_text())["resumed"] == 3
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(f"runs/{name}").history()]
             for name in ("part", "whole")]  # fmt: skip
    assert lines[0] == lines[1]


@pytest.mark.slow
@POSIX
def test_a_teacher_whose_preparation_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rkd) -> None:
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "own"))
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    recipe = tmp_path / "one.toml"
    recipe.write_text(
        '[[teachers]]\nrole = "clean"\nreference = "small-cnn"\noptions = { width = 4 }\n'
        'train = { epochs = 3, extensions = { slow = {} } }\n[loss]\nname = "kd"\n'
    )
    words = ("run", recipe, "--plugin", plugin, "--epochs", "1", "--set", "student.width=4", "--evaluate", "none")
    words += ("--no-report", "--set", "validate.steps=0", "--set", "checkpoint.minutes=0.001")
    process = start(*words)

    def begun() -> RunFolder | None:
        found = list((tmp_path / "own" / "teachers").glob("*.part"))
        return RunFolder(found[0]) if found else None

    until(process, lambda: bool((part := begun()) and part.place() and part.place() > (0, 5, 0)))
    process.kill()
    process.wait()
    said = rkd(*words)
    assert said.exit_code == 0, said.stderr
    assert "teacher, which another process began" in said.stderr
    assert "continuing after step " in said.stderr
    assert not list((tmp_path / "own" / "teachers").glob("*.part"))

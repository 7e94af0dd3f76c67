"""Ctrl-C that some callback swallowed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from rkd.cli.interrupts import Interrupts


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


def test_a_run_whose_interrupt_was_swallowed_ends_after_the_step(rkd) -> None:
    """A plugin that throws KeyboardInterrupt away stands for the C code that does."""
    from pathlib import Path

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

"""A command in several processes of this machine, as torchrun would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

PATIENCE = 10.0
"""Seconds that the others get to end by themselves when one has failed."""


def among_many(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several already."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def in_processes(words: Sequence[str], count: int) -> int:
    """Run `rkd WORDS` in `count` processes that share the machine's cores; the first one speaks. Returns the exit code:
    that of the first to fail, or 0. Ctrl-C reaches them all, a termination is passed on."""
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "rkd", *words],
            env={"OMP_NUM_THREADS": str(threads)} | os.environ | shared | {"RANK": str(n), "LOCAL_RANK": str(n)},
        )
        for n in range(count)
    ]

    def pass_on(number: int, frame: Any) -> None:
        for process in started:
            process.send_signal(number)

    # Not before they are started: a signal that is ignored stays so in whom one starts.
    before = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _wait(started)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def _wait(started: list[subprocess.Popen[bytes]]) -> int:
    code, failed_at = 0, 0.0
    while None in (codes := [process.poll() for process in started]):
        failed = [each for each in codes if each]
        if failed and not code:
            code, failed_at = failed[0], time.monotonic()
        if code and time.monotonic() - failed_at > PATIENCE:
            for process in started:
                process.kill()
        time.sleep(0.05)
    code = code or next((each for each in codes if each), 0)
    return code if code >= 0 else 128 - code  # as a shell tells of a signal


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])

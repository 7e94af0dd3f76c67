"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a long training that is now and then inside
a callback that some C code called and whose errors it throws away, and then the run would go on as if nothing had been
asked. So the wish is noted as well, and looked at after each step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise the KeyboardInterrupt that got lost, if one did."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, SIGINT is noted and raised as ever. Only the main thread gets signals: elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            # None stands for a handler that was not set from Python, which cannot be put back.
            signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt

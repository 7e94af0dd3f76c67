"""Ctrl-C and SIGTERM that are not lost.

In a training the first one lets the step end and the state be saved; Ctrl-C once more stops at once. Elsewhere the
first one stops at once: there is nothing to save, or (in an evaluation) each batch is kept as it is done. A further
SIGTERM says nothing new: torchrun sends two, and a sweep's runs may get the group's and the sweep's.

Python raises KeyboardInterrupt wherever the main thread happens to be. Now and then that is inside a callback that some
C code called and whose errors it throws away, and then the run would go on as if nothing had been asked. So the wish is
noted as well, and looked at after each step.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM: the batch system wants the machine back."""


class Interrupts:
    """Whether Ctrl-C was pressed, or SIGTERM came. `tell` is called at the first one that lets a step end."""

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.asked = False
        self.gentle = False
        """Whether a first signal is only noted. Whoever sets it has to look at `asked` soon and often."""
        self.tell = tell
        self.signal: int = signal.SIGINT

    def check(self) -> None:
        """Raise the KeyboardInterrupt that got lost, if one did."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, signals are noted. Only the main thread gets signals: elsewhere nothing changes.

        Raises Terminated instead of KeyboardInterrupt where the signal was SIGTERM.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        except KeyboardInterrupt as error:
            if self.asked and self.signal == signal.SIGTERM:
                raise Terminated(*error.args) from error
            raise
        finally:
            if self.asked and self.signal == signal.SIGTERM:
                del before[signal.SIGTERM]  # the process ends, and a further one shall not cut its last words
            for number, handler in before.items():
                # None stands for a handler that was not set from Python, which cannot be put back.
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGTERM:
            return
        first, self.asked, self.signal = not self.asked, True, number
        if first and self.gentle:
            self.tell()
            return
        raise KeyboardInterrupt

"""Progress in a notebook: lines that are drawn over themselves in the cell's output, and messages below."""

import io
import sys
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

from .progress import Display
from .terminal import Terminal

WIDTH = 100
EVERY = 0.5
"""Seconds between two drawings."""


class NotebookTerminal(Terminal):
    """What a terminal prints, in the output of a notebook's cell."""

    def __init__(self) -> None:
        super().__init__()
        self.err = self.out  # a notebook shows stderr as if it were errors
        self._stop = threading.Event()
        self._drawing: threading.Thread | None = None
        self._place: Any = None
        """The one place in the cell's output where everything is drawn; messages come below it."""

    @property
    def animated(self) -> bool:
        return True

    def live(self, draw: Callable[[], RenderableType]) -> None:
        from IPython.display import display

        self.still()
        self._place = self._place or display({"text/plain": ""}, raw=True, display_id=True)
        stop = self._stop = threading.Event()

        def follow() -> None:
            while not stop.is_set():
                self._draw(rendered(draw()))
                stop.wait(EVERY)
            self._draw("")

        self._drawing = threading.Thread(target=follow, daemon=True)
        self._drawing.start()

    def _draw(self, text: str) -> None:
        self._place.update({"text/plain": text}, raw=True)

    def still(self) -> None:
        super().still()
        self._stop.set()
        if self._drawing is not None:
            self._drawing.join()
            self._drawing = None


def rendered(content: RenderableType) -> str:
    """As plain text."""
    file = io.StringIO()
    # Left to itself, it would find the kernel and send what it prints to the cell, too.
    Console(file=file, width=WIDTH, markup=False, highlight=False, emoji=False, force_jupyter=False).print(content)
    return file.getvalue().rstrip()


def is_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def display() -> Display:
    """The reporter for wherever this runs."""
    return Display(NotebookTerminal() if is_notebook() else Terminal())

"""Progress in a notebook: lines that are drawn over themselves in the cell's output, and messages below."""

import io
import sys
import threading
from collections.abc import Callable

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

    @property
    def animated(self) -> bool:
        return True

    def live(self, draw: Callable[[], RenderableType]) -> None:
        from IPython.display import display

        self.still()
        handle = display({"text/plain": rendered(draw())}, raw=True, display_id=True)
        stop = self._stop = threading.Event()

        def follow() -> None:
            while not stop.wait(EVERY):
                handle.update({"text/plain": rendered(draw())}, raw=True)
            handle.update({"text/plain": ""}, raw=True)

        self._drawing = threading.Thread(target=follow, daemon=True)
        self._drawing.start()

    def still(self) -> None:
        super().still()
        self._stop.set()
        if self._drawing is not None:
            self._drawing.join()
            self._drawing = None


def rendered(content: RenderableType) -> str:
    """As plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(content)
    return capture.get().rstrip()


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

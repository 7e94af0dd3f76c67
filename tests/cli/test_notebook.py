"""Progress in a notebook's cell."""

from __future__ import annotations

from typing import Any

import pytest
from rich.text import Text

from rkd.cli.notebook import NotebookTerminal, display, is_notebook, rendered


def test_no_notebook_here() -> None:
    assert not is_notebook()
    assert not isinstance(display().terminal, NotebookTerminal)


def test_living_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They are shown at once, and taken away again; messages stay."""
    module = pytest.importorskip("IPython.display")
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(content["text/plain"])

    def show(content: dict[str, str], **settings: Any) -> Handle:
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setattr(module, "display", show)
    terminal = NotebookTerminal()
    terminal.live(lambda: Text("epoch 1"))
    terminal.message("done")
    terminal.still()
    terminal.still()
    assert (shown[0], shown[-1]) == ("epoch 1", "")
    assert capsys.readouterr() == ("done\n", "")


def test_rendered() -> None:
    assert rendered(Text("a\nb  ")) == "a\nb"

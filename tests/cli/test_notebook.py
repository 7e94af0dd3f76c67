"""Progress in a notebook's cell."""

from __future__ import annotations

import threading
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
    places: list[int] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(content["text/plain"])

    def show(content: dict[str, str], **settings: Any) -> Handle:
        shown.append(content["text/plain"])
        places.append(1)
        return Handle()

    monkeypatch.setattr(module, "display", show)
    terminal = NotebookTerminal()
    for text in ("epoch 1", "epoch 2"):
        drawn = threading.Event()

        def draw(text: str = text, drawn: threading.Event = drawn) -> Text:
            drawn.set()
            return Text(text)

        terminal.live(draw)
        assert drawn.wait(60)
        terminal.still()
    terminal.message("done")
    terminal.still()
    assert list(dict.fromkeys(shown)) == ["", "epoch 1", "epoch 2"] and shown[-1] == "" and places == [1]
    assert capsys.readouterr() == ("done\n", "")


def test_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As text, and nowhere else: in a kernel rich would show it in the cell, too."""

    def shown(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", shown)
    assert rendered(Text("a\nb  ")) == "a\nb"
    NotebookTerminal().message("text")

"""What terminals and pipes get: colours, brackets, durations."""

from __future__ import annotations

import re

import pytest

from rkd.cli.terminal import Terminal, duration

from .conftest import plain


def test_no_color(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal, stream = screen(80)
    terminal.error("no", ["one", "two"], ["try this"])
    assert not re.search(r"\x1b\[[0-9;]*3\dm", stream.getvalue())
    assert plain(stream) == ["error: no", "  - one", "  - two", "  try this"]


def test_brackets_are_no_markup(screen) -> None:
    terminal, stream = screen(80)
    terminal.error("expected [ROLE=]REF, got [/red] :smile:")
    terminal.table(["a"], [["[bold]x"]])
    assert "expected [ROLE=]REF, got [/red] :smile:" in plain(stream)[0]
    assert "[bold]x" in plain(stream)[-1]


def test_a_dumb_terminal_gets_lines(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal, _ = screen(80)
    assert not terminal.animated
    assert not Terminal(verbosity=-1).animated


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 59.6, 61, 600, 3600, 7500)] == ["1 s", "1 min", "1 min 1 s", "10 min", "1 h",
                                                                      "2 h 5 min"]  # fmt: skip

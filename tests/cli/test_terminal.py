"""What terminals and pipes get: colours, brackets, durations."""

from __future__ import annotations

import re

import pytest

import rkd.cli.terminal
from rkd.cli.terminal import Terminal, arranged, duration

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


def test_the_line_under_headings_is_no_longer_than_the_terminal(screen) -> None:
    terminal, stream = screen(60)
    terminal.table(["broken", ("why", "wrap")], [["a", f"in {'/folder' * 20}"]])
    assert plain(stream)[1] == "─" * 60


def test_a_dumb_terminal_gets_lines(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal, _ = screen(80)
    assert not terminal.animated
    assert not Terminal(verbosity=-1).animated


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 59.6, 61, 600, 3600, 7500)] == ["1 s", "1 min", "1 min 1 s", "10 min", "1 h",
                                                                      "2 h 5 min"]  # fmt: skip


def test_a_table_keeps_every_word_and_name() -> None:
    columns = ["option", ("type", "wrap")]
    about = "one of many words, and mtard-anl is one of them"
    for width in (30, 60):
        (lines,) = arranged(columns, [["x" * 20, about], ["y", about]], width)
        assert all(len(line) <= width for line in lines)
        assert " ".join(" ".join(lines).split()) == f"option type {'x' * 20} {about} y {about}"
    assert arranged(["a", ("b", "right")], [["x", "1"]], 80) == [["a  b", "x  1"]]


def test_what_takes_long_is_told(screen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rkd.cli.terminal, "SOON", 0)
    terminal = Terminal()
    terminal.doing("reading a large file")
    assert terminal._late is not None
    terminal._late.join()
    assert capsys.readouterr().err == "reading a large file\n"
    monkeypatch.setattr(rkd.cli.terminal, "SOON", 1e6)
    terminal.doing("no time at all")
    terminal.still()
    terminal.doing("torch", at_once=True)
    Terminal(verbosity=-1).doing("torch", at_once=True)
    assert capsys.readouterr().err == "torch\n"
    terminal, stream = screen(80)
    terminal.doing("reading a large file")
    assert "reading a large file ..." in "".join(plain(stream))
    terminal.still()

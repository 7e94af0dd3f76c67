"""The only place that prints. Results go to stdout, everything else to stderr; with `--json` stdout is one object.

Piped, output is plain text without control characters, and nothing is wrapped: that is left to who reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rkd.core.errors import printable

_ESCAPED = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\U000e0000-\U000e0fff]")
"""Characters beyond ASCII's own that steer a terminal, or how it orders what follows."""

Column = str | tuple[str, str]
"""A heading, or (heading, "right") for numbers, or (heading, "wrap") for long text."""


class Terminal:
    """`verbosity`: -1 results, warnings and errors alone; 1 more about what goes on."""

    def __init__(self, json: bool = False, verbosity: int = 0) -> None:
        self.json_only = json
        self.verbosity = verbosity
        self.err = _console(sys.stderr)
        self.out = self.err if json else _console(sys.stdout)
        self._live: Live | None = None

    def silence(self, silent: bool = True) -> None:
        """Print nothing at all: of several processes one speaks."""
        self.err.quiet = self.out.quiet = silent

    @property
    def animated(self) -> bool:
        """Whether progress may be drawn over itself."""
        if self.err.quiet or self.verbosity < 0:
            return False
        return self.err.is_terminal and _is_tty(sys.stderr) and not self.err.is_dumb_terminal

    @property
    def width(self) -> int:
        """Columns of stdout's terminal; 80 where it is none."""
        return self.out.width if self.out.is_terminal else 80

    def result(self, text: str = "", style: str = "", wrap: bool = False) -> None:
        """A result: stdout. `wrap`: by words, where it is not to be copied as it stands."""
        self.out.print(Text(safe(text), style), soft_wrap=not wrap)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], title: str = "") -> None:
        """Rows under headings: stdout."""
        if title:
            self.result(title, "bold")
        plain = not self.out.is_terminal
        table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
        for column in columns:
            heading, kind = (column, "left") if isinstance(column, str) else column
            table.add_column(
                Text(safe(heading)),
                justify="right" if kind == "right" else "left",
                no_wrap=kind != "wrap",
                overflow="fold" if kind == "wrap" else "ellipsis",
            )
        for row in rows:
            table.add_row(*(Text(safe(cell)) if isinstance(cell, str) else cell for cell in row))
        # Plain tables pad their last column with blanks, which nobody wants in a log.
        if plain:
            with self.out.capture() as capture:
                self.out.print(table)
            self.out.print(Text("\n".join(line.rstrip() for line in capture.get().splitlines())), soft_wrap=True)
        else:
            self.out.print(table)

    def json(self, content: Any) -> None:
        """The one object of `--json`."""
        if self.out.quiet:
            return
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        sys.stdout.write(_ESCAPED.sub(lambda match: json.dumps(match.group())[1:-1], text) + "\n")
        sys.stdout.flush()

    def message(self, text: str, always: bool = False, hint: bool = False, wrap: bool = False) -> None:
        """What goes on: stderr. `always`: also with -q. `hint`: on a terminal alone."""
        if (self.verbosity >= 0 or always) and (not hint or self.animated):
            self.err.print(Text(safe(text)), soft_wrap=not wrap)

    def detail(self, text: str) -> None:
        """What -v adds: stderr."""
        if self.verbosity > 0:
            self.err.print(Text(safe(text), "dim"), soft_wrap=True)

    def warning(self, text: str) -> None:
        """Something doubtful: stderr."""
        self.err.print(Text.assemble(("warning: ", "bold yellow"), safe(text)))

    def error(self, text: str, problems: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
        """Why the command ends: stderr. `notes`, what to type next, stay whole for copying."""
        self.err.print(Text.assemble(("error: ", "bold red"), safe(text)))
        for problem in problems:
            self.err.print(Padding(Text(f"- {safe(problem)}"), (0, 0, 0, 2), expand=False))
        for note in notes:
            self.err.print(Text(f"  {safe(note)}"), soft_wrap=True)

    def live(self, draw: Callable[[], RenderableType]) -> None:
        """Keep what `draw` returns on the last lines of the terminal, until `still()`."""
        self.still()
        self._live = Live(
            # Room for the `^C` that a terminal echoes: a line that it makes too long would be left behind.
            get_renderable=lambda: Constrain(draw(), self.err.width - 3),
            console=self.err,
            refresh_per_second=5,
            transient=True,
        )
        self._live.start()

    def still(self) -> None:
        """Take the living lines away."""
        if self._live:
            live, self._live = self._live, None
            live.stop()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, nobody's `print` spoils the one object of `--json`; living lines are gone afterwards."""
        with contextlib.redirect_stdout(sys.stderr) if self.json_only else contextlib.nullcontext():
            try:
                yield
            finally:
                self.still()


def safe(text: str) -> str:
    """`text` without characters that steer a terminal: names and errors come from files of strangers."""
    return printable(text, keep="\n\t")


def percent(share: float) -> str:
    """`93.2` for 0.932."""
    return f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{max(seconds, 1)} s"
    if seconds < 3600:
        return f"{seconds // 60} min" + (f" {seconds % 60} s" if seconds % 60 and seconds < 600 else "")
    return f"{seconds // 3600} h" + (f" {seconds % 3600 // 60} min" if seconds % 3600 // 60 else "")


def memory(count: float) -> str:
    """Bytes as `850 MiB` or `2.1 GiB`."""
    return f"{count / 2**20:.0f} MiB" if count < 1000 * 2**20 else f"{count / 2**30:.1f} GiB"


def _console(stream: IO[str]) -> Console:
    # A pipe has no width. A width that somebody sets is theirs.
    width = None if _is_tty(stream) or os.environ.get("COLUMNS", "").isdigit() else 10_000
    return Console(
        file=stream, markup=False, highlight=False, emoji=False, width=width, force_terminal=_is_tty(stream),
        soft_wrap=False,
    )  # fmt: skip


def _is_tty(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a stream that a test or a pipe has closed
        return False

"""The only place that prints. Results go to stdout, everything else to stderr; with `--json` stdout is one object.

Piped, output is plain text without control characters, and nothing is wrapped: that is left to who reads it.
"""

import contextlib
import json
import os
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from rkd.storage.text import printable

_ESCAPED = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\U000e0000-\U000e0fff]")
"""Characters beyond ASCII's own that steer a terminal, or how it orders what follows."""

SOON = 1.5
"""Seconds after which the user is told what takes so long."""

NARROWEST = 24
"""Columns below which a text is not wrapped beside others, and a name is not long."""

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
        self._late: threading.Timer | None = None

    def silence(self, silent: bool = True) -> None:
        """Print nothing at all: of several processes one speaks."""
        self.err.quiet = self.out.quiet = silent

    @property
    def animated(self) -> bool:
        """Whether progress may be drawn over itself."""
        if self.err.quiet or self.verbosity < 0:
            return False
        return self.err.is_terminal and _is_tty(sys.stderr) and not self.err.is_dumb_terminal

    def result(self, text: str = "", style: str = "", wrap: bool = False) -> None:
        """A result: stdout. `wrap`: by words, where it is not to be copied as it stands."""
        self.out.print(Text(safe(text), style), soft_wrap=not wrap)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Rows under headings: stdout. Nothing is cut: see `arranged`."""
        if title:
            self.result(title, "bold", wrap=True)
        cells = [[printable(cell) for cell in row] for row in rows]
        for number, (heading, *lines) in enumerate(arranged(columns, cells, self.out.width)):
            if number:
                self.result()
            self.result(heading)
            if self.out.is_terminal:
                self.result("─" * min(self.out.width, max(map(cell_len, (heading, *lines)))))
            for line in lines:
                self.result(line)

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
        self._live.start(refresh=True)

    def doing(self, text: str, at_once: bool = False) -> None:
        """What takes its time: as a living line, else as a line where it takes more than `SOON` seconds (`at_once`: in
        any case, before what keeps other threads from running)."""
        self.still()
        if self.animated:
            self.live(lambda: Text(f"{safe(text)} ...", no_wrap=True, overflow="ellipsis"))
        elif at_once:
            self.message(text)
        elif self.verbosity >= 0:
            self._late = threading.Timer(SOON, self._tell_late, [text])
            self._late.daemon = True
            self._late.start()

    def _tell_late(self, text: str) -> None:
        with contextlib.suppress(ValueError, OSError):  # the stream was closed meanwhile
            self.message(text)

    def still(self) -> None:
        """Take the living lines away."""
        if self._late:
            self._late.cancel()
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


def arranged(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Tables of at most `width` columns, each as lines, the headings first.

    Where one is too wide, long names in the first column get lines of their own, and columns of numbers go into further
    tables; text of a "wrap" column, which is the last one, is wrapped by words.
    """
    kinds = ["" if isinstance(column, str) else column[1] for column in columns]
    cells = [[column if isinstance(column, str) else column[0] for column in columns], *rows]
    sizes = [max(cell_len(row[place]) for row in cells) for place in range(len(columns))]

    def line(row: Sequence[str], places: Sequence[int], first: int) -> str:
        rest = [(" " * (sizes[p] - cell_len(row[p])), row[p], kinds[p]) for p in places]
        texts = [gap + text if kind == "right" else text + gap for gap, text, kind in rest]
        return "  ".join([row[0] + " " * (first - cell_len(row[0])), *texts]).rstrip()

    if fits(columns, rows, width):
        return [[line(row, range(1, len(columns)), sizes[0]) for row in cells]]
    if kinds[-1] == "wrap":
        before = range(1, len(columns) - 1)
        room = width - sum(size + 2 for size in sizes[:-1])
        lines = []
        for row in cells:
            head = line(row, before, sizes[0])
            texts = textwrap.wrap(row[-1], room if room >= NARROWEST else width - 4, break_long_words=False,
                                  break_on_hyphens=False)  # fmt: skip
            if room >= NARROWEST:
                indent = width - room
                lines += [head + " " * (indent - cell_len(head)) + "".join(texts[:1])]
                lines += [" " * indent + text for text in texts[1:]]
            else:
                lines += [head, *(f"    {text}" for text in texts)]
        return [[text.rstrip() for text in lines]]
    longest = max(NARROWEST, width // 3)
    first = max((size for row in cells if (size := cell_len(row[0])) <= longest), default=0)
    parts: list[list[int]] = [[]]
    for place in range(1, len(columns)):
        if parts[-1] and first + sum(2 + sizes[p] for p in [*parts[-1], place]) > width:
            parts.append([])
        parts[-1].append(place)
    tables = []
    for part in parts:
        lines = []
        for row in cells:
            if cell_len(row[0]) > first:
                lines += [row[0][at : at + width] for at in range(0, len(row[0]), width)]
                row = ["", *row[1:]]
            lines.append(line(row, part, first))
        tables.append(lines)
    return tables


def fits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the whole table is at most `width` columns wide."""
    heads = [column if isinstance(column, str) else column[0] for column in columns]
    return sum(2 + max(map(cell_len, cells)) for cells in zip(heads, *rows, strict=True)) - 2 <= width


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
        force_jupyter=False, soft_wrap=False,
    )  # fmt: skip


def _is_tty(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a stream that a test or a pipe has closed
        return False

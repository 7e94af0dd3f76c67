"""Text from strangers: read with a limit, parsed without surprises, shown without control characters.

Whoever hands on a recipe or a run's folder decides what is in its files. A parser's time and memory must follow from
the size of a file, and no name may move a terminal's cursor or open a tag.
"""

import codecs
import json
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..core.errors import RkdError
from .files import open_file

MOST_TOML = 1 << 20
"""Bytes of a TOML file that is read; a run's configuration has some five thousand."""

MOST_JSON = 16 << 20
"""Bytes of a JSON file that is read: Python's lists and numbers take some twenty times as much."""

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How UTF-16 begins, which PowerShell's `>` writes."""

DEEPEST = 32
"""Tables in one another that a file may hold."""

# DEEPEST parts: a key of n costs tomllib n * n steps. Possessive, so that the search itself takes linear time.
_LONG_KEY = re.compile(r"""(?<![\w."'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")


def read_text(path: Path, most: int = MOST_TOML, errors: str = "strict") -> str:
    """Text of a file of at most `most` bytes: UTF-8, or what a byte order mark says. Raises RkdError;
    FileNotFoundError where there is no file."""
    try:
        with open_file(path) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise RkdError(f"cannot read {path}: it is larger than {_size(most)}, which no such file is")
        return content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig", errors)
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise RkdError(
            f"cannot read {path}: byte {error.start + 1} is not {error.encoding.upper()}; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise RkdError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise RkdError(f"cannot read {path}: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML table. Raises ValueError, also for what is nested deeper than `DEEPEST` or would take too long to read,
    and for whole numbers beyond 64 bits, which turn into no float."""
    if len(text) > MOST_TOML:
        raise ValueError(f"it is larger than {_size(MOST_TOML)}")
    if found := _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {DEEPEST} parts, from {found.group()[:20]!r} on")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_values(table)
    return table


def parse_json(text: str) -> Any:
    """Any JSON value. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_values(value: Any, deepest: int = DEEPEST) -> None:
    """Raise ValueError for tables and lists nested deeper than `deepest` (what walks through them calls itself), for
    whole numbers beyond 64 bits, and for dates."""
    level = [value]
    for _ in range(deepest):
        level = [inner for outer in level for inner in _inside(outer)]
        if any(isinstance(inner, int) and not -(2**63) <= inner < 2**63 for inner in level):
            raise ValueError("a whole number is beyond 64 bits")
        if any(isinstance(inner, date | time) for inner in level):
            raise ValueError("a date or a time stands in it, which no setting takes; write it as a text")
        if not level:
            return
    raise ValueError("it is nested too deeply")


def expanded(path: Path | str) -> Path:
    """`path` with `~` resolved. Raises RkdError for a user that is not there."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RkdError(f"{path}: there is no such user's folder; write the whole path") from None


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """`" Did you mean a or b?"` for names near `name`, whatever their case, else an empty string."""
    spelt = {one.lower(): one for one in known}
    matches = get_close_matches(name.lower(), list(spelt), n=limit, cutoff=0.5) if len(name) <= 100 else []
    near = [spelt[one] for one in matches]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def with_input(problem: str, value: object) -> str:
    """A problem with what was given, unless it says that already."""
    return problem if f"got {shown(value)}" in problem else f"{problem} (got {shown(value)})"


def shown(value: object, limit: int = 200) -> str:
    """`repr` of what somebody gave, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable(value: str, keep: str = "") -> str:
    """Without control, format and private characters: no terminal, browser or XML parser is surprised by the rest."""
    if value.isprintable():
        return value
    kept = []
    for c in value:
        kind = unicodedata.category(c)
        if c in keep:
            kept.append(c)
        elif c in "\n\r\t" or kind in ("Zl", "Zp"):
            kept.append(" ")
        elif kind[0] != "C":
            kept.append(c)
    return "".join(kept)


def file_of(reference: Path | str) -> Path:
    """FILE of `FILE` or `FILE#KEY`; a file's own name may hold `#`."""
    path = expanded(reference)
    return path if path.exists() else expanded(str(reference).partition("#")[0])


def command(*words: object) -> str:
    """`rkd eval 'my runs/a'`: what a message tells to type, as a shell takes it."""
    return shlex.join(["rkd", *map(str, words)])


def fraction(value: float) -> str:
    """`value` as the field writes it: `8/255` for a multiple of 1/255 below 1, unless a short decimal (0.2) says it."""
    times = value * 255
    short = f"{value:.3g}"
    if 0 < abs(value) < 1 and float(short) != value and abs(times - round(times)) < 1e-6 and round(times):
        return f"{round(times)}/255"
    return f"{value:.6g}"


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


_SPELT = {"autoattack": "AutoAttack", "deepfool": "DeepFool", "mifgsm": "MI-FGSM", "square": "Square"}
_ACRONYMS = {"apgd", "bim", "ce", "cw", "dlr", "fab", "fgsm", "jsma", "kl", "l1", "l2", "pgd", "sat", "t", "trades"}


def attack_name(name: str) -> str:
    """`PGD-SAT` for `pgd-sat`, `AutoAttack` for `autoattack`, as tables of the field write them; others as they are."""
    words = (_SPELT.get(word) or (word.upper() if word in _ACRONYMS else word) for word in name.split("-"))
    return name if "/" in name else "-".join(words)


def flattened(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a table of tables with their dotted keys: `{"loss": {"T": 2}}` gives `loss.T`, 2."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

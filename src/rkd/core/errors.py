"""The errors that rkd raises on purpose.

`RkdError` is shown to the user as one message without a traceback (exit code 2). A message says what was asked,
what there is, and what to type.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RkdError(Exception):
    """A mistake that the user can mend."""


class ConfigError(RkdError):
    """One or several problems in a recipe, an option or a `--set`, all reported at once."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnknownName(RkdError):
    """A name that nothing provides, with the nearest known ones."""


class DataError(RkdError):
    """Images, labels or a data set that cannot be used."""


class WeightsError(RkdError):
    """A weights file that is missing, corrupt or made for another architecture."""


class Refused(RkdError):
    """A combination of parts that makes no sense, with the reason."""


class TrainingFailed(RkdError):
    """Training broke: a loss or a weight that is not finite."""


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop (SIGINT, SIGTERM), has finished its step and saved its state."""


def command(*words: object) -> str:
    """`rkd eval 'my runs/a'`: what a message tells to type, as a shell takes it."""
    return shlex.join(["rkd", *map(str, words)])


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

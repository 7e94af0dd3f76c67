"""Values from a stranger's files, made safe to show: text without control characters, numbers that are finite.

Whoever writes a run folder decides what is in it. Everything that the room shows goes through here first; nothing here
raises on any value that JSON or TOML can hold.
"""

import math
from collections.abc import Mapping
from typing import Any

from rkd.storage.text import fraction, printable

LARGEST = 1e15
"""Numbers beyond this are no measurement: they count as missing."""

LINE = 200
"""Characters of a name or an option that are shown."""


def text(value: Any, limit: int = LINE) -> str:
    """One line of `value`; "" for anything but text, numbers and truth values."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return plain(number(value))
    if not isinstance(value, str):
        return ""
    return shortened(" ".join(printable(value[: 4 * limit]).split()), limit)


def block(value: Any, limit: int = 200_000) -> str:
    """Text of several lines, such as a file's."""
    if not isinstance(value, str):
        return ""
    cut = value[:limit]
    more = f"\n... {len(value) - limit:,} more characters" if len(value) > limit else ""
    return printable(cut.replace("\r\n", "\n").replace("\t", "    "), keep="\n") + more


def shortened(value: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where some were taken away."""
    return value if len(value) <= limit else value[: limit - 1].rstrip() + "…"


def number(value: Any, low: float = -LARGEST, high: float = LARGEST) -> float | None:
    """A finite number in [low, high], else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and low <= found <= high else None


def share(value: Any) -> float | None:
    """A number in [0, 1], else None. Rounding of float32 beyond 1 is cut."""
    found = number(value, 0.0, 1.0 + 1e-6)
    return None if found is None else min(found, 1.0)


def whole(value: Any) -> int | None:
    """A count: a whole number that is not negative, else None."""
    found = number(value, 0.0)
    return int(found) if found is not None and found == int(found) else None


def interval(value: Any) -> tuple[float, float] | None:
    """`[low, high]` within [0, 1], else None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = share(value[0]), share(value[1])
    return (low, high) if low is not None and high is not None and low <= high else None


def table(value: Any) -> dict[str, Any]:
    """A table with safe names; {} for anything else."""
    if not isinstance(value, Mapping):
        return {}
    named = {text(key): inner for key, inner in value.items()}
    named.pop("", None)
    return named


def items(value: Any) -> list[Any]:
    """A list; [] for anything else."""
    return value if isinstance(value, list) else []


def shallow(value: Any, depth: int = 12) -> Any:
    """`value` without what is nested deeper than `depth`: a thousand tables in one another are no run's."""
    if isinstance(value, Mapping):
        return {key: shallow(inner, depth - 1) for key, inner in value.items()} if depth else {}
    if isinstance(value, list):
        return [shallow(inner, depth - 1) for inner in value] if depth else []
    return value


def setting(name: str, value: Any) -> str:
    """An option's value on one line: radii as fractions, lists in brackets."""
    if isinstance(value, list):
        return shortened(f"[{', '.join(setting(name, inner) for inner in value[:20])}]", LINE)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key} = {setting(key, inner)}" for key, inner in list(table(value).items())[:20])
        return shortened(f"{{{inside}}}", LINE)
    found = number(value)
    if found is not None and name in {"curve", "eps", "step_size"} and 0 < found < 1:
        return fraction(found)
    return text(value)


# How numbers are written


def plain(value: float | None) -> str:
    """`0.1`, `1234`, `1.2e-05`; `–` for a missing number."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e7 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """`93.2` for 0.932."""
    return "–" if value is None else f"{100 * value:.1f}"


def between(value: tuple[float, float] | None) -> str:
    """`[91.0–95.1]`, in percent; "" for none."""
    return "" if value is None else f"[{percent(value[0])}–{percent(value[1])}]"


def grouped(value: int | None) -> str:
    """`12,345`."""
    return "–" if value is None else f"{value:,}"


def magnitude(value: float | None, unit: str = "") -> str:
    """`26.0 k`, `1.04 G`, `105 kB`: three digits and a prefix of a thousand."""
    if value is None:
        return "–"
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}".rstrip()
        value /= 1000
    return f"{value:.3g} T{unit}"


def milliseconds(median: float | None, quartiles: tuple[float, float] | None) -> str:
    """`0.28 [0.27–0.39]`."""
    if median is None:
        return "–"
    return f"{median:.2f}" + (f" [{quartiles[0]:.2f}–{quartiles[1]:.2f}]" if quartiles else "")


def duration(seconds: float | None) -> str:
    """`0.4 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if (rounded := round(seconds)) < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min" + (f" {rounded % 60} s" if rounded % 60 and rounded < 600 else "")
    return f"{rounded // 3600:,} h" + (f" {rounded % 3600 // 60} min" if rounded % 3600 // 60 else "")


def radius(norm: str, eps: float | None) -> str:
    """`Linf eps 8/255`; "" where the radius is not known."""
    return f"{norm} eps {fraction(eps)}".strip() if eps is not None else ""

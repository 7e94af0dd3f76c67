"""Numbers that change over training, and how they are written in recipes.

Any number option may be a schedule, a function of the progress in [0, 1]:

    0.3  8/255                       a constant
    ramp(0, 0.3, until=0.4)          linear from 0 to 0.3 over the first 40 %, then 0.3 (also since=...)
    cosine(1, 0)                     half a cosine from 1 to 0 (also since=..., until=...)
    drops(1, 0.5, 0.75, factor=0.1)  1, times 0.1 at 50 % and again at 75 %
    points(0:0, 0.3:1, 1:0)          straight lines through the points progress:value
    onecycle(1, pct_start=0.3)       half a cosine from 1/25 to 1 over the first 30 %, then one down to 1/250000
"""

import math
import re
from dataclasses import dataclass, fields
from itertools import pairwise

from ..core.types import Schedule, at
from ..storage.text import fraction, shown


@dataclass(frozen=True, slots=True)
class Ramp:
    """Linear from `start` to `end` while progress goes from `since` to `until`; constant outside."""

    start: float
    end: float
    since: float = 0.0
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * _share(progress, self.since, self.until)

    def __str__(self) -> str:
        span = "".join(
            f", {name}={_show(value)}"
            for name, value, usual in (("since", self.since, 0), ("until", self.until, 1))
            if value != usual
        )
        return f"{type(self).__name__.lower()}({_show(self.start)}, {_show(self.end)}{span})"


class Cosine(Ramp):
    """Half a cosine from `start` to `end` while progress goes from `since` to `until`; constant outside."""

    __slots__ = ()

    def __call__(self, progress: float) -> float:
        share = _share(progress, self.since, self.until)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, slots=True)
class Drops:
    """`start`, multiplied by `factor` at each progress in `at`."""

    start: float
    at: tuple[float, ...]
    factor: float = 0.1

    def __call__(self, progress: float) -> float:
        # Progress is (epoch + fraction) / epochs: a hair of slack keeps 215/300 from landing one step late.
        return self.start * self.factor ** sum(progress >= when - 1e-9 for when in self.at)

    def __str__(self) -> str:
        times = "".join(f", {_show(when)}" for when in self.at)
        return f"drops({_show(self.start)}{times}, factor={_show(self.factor)})"


@dataclass(frozen=True, slots=True)
class Points:
    """Straight lines through `(progress, value)` points; constant before the first and after the last."""

    points: tuple[tuple[float, float], ...]

    def __call__(self, progress: float) -> float:
        before = self.points[0]
        for point in self.points:
            if progress <= point[0]:
                return before[1] + (point[1] - before[1]) * _share(progress, before[0], point[0])
            before = point
        return before[1]

    def __str__(self) -> str:
        return f"points({', '.join(f'{_show(p)}:{_show(v)}' for p, v in self.points)})"


@dataclass(frozen=True, slots=True)
class OneCycle:
    """The learning rate of torch's `OneCycleLR` with two phases of cosines: from `peak` / `div_factor` up to `peak` at
    `pct_start` of the training, then down to `peak` / `div_factor` / `final_div_factor` (Smith and Topin, 2019).

    With `steps` it is torch's with as many `total_steps`, constant in each of them: the epochs, for scripts that set
    the rate once an epoch. Without, it is continuous, the limit of many steps. torch moves the momentum against the
    rate unless it is told not to (`cycle_momentum=False`); here the momentum stays.
    """

    peak: float
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    steps: float | None = None

    def __call__(self, progress: float) -> float:
        place, top, last = progress, self.pct_start, 1.0
        if self.steps:
            # As in `Drops`, a hair of slack: epoch 29 of 100 must not count as the one before.
            place, top, last = math.floor(progress * self.steps + 1e-6), self.pct_start * self.steps - 1, self.steps - 1
        start = self.peak / self.div_factor
        if place <= top:
            return Cosine(start, self.peak)(_share(place, 0, top))
        return Cosine(self.peak, start / self.final_div_factor)(_share(place, top, last))

    def __str__(self) -> str:
        options = [
            f", {option.name}={_show(value)}"
            for option in fields(self)[1:]
            if (value := getattr(self, option.name)) != option.default
        ]
        return f"onecycle({_show(self.peak)}{''.join(options)})"


def parse_number(text: str | float | int) -> float:
    """A finite number from `0.3`, `"0.3"` or `"8/255"`. Raises ValueError with what was expected."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"expected a number such as 0.3 or 8/255, got {shown(text)}")
    if isinstance(text, str):
        top, slash, bottom = text.partition("/")
        try:
            value = float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected a number such as 0.3 or 8/255, got {shown(text)}") from None
    else:
        value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {shown(text)}")
    return value


def parse_schedule(text: str | float | int) -> Schedule:
    """A number or one of the forms in this module's docstring. Raises ValueError."""
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text) if isinstance(text, str) else None
    if match is None:
        try:
            return parse_number(text)
        except ValueError as error:
            raise ValueError(f"{error} (or a schedule: {', '.join(_FORMS)})") from None
    name, inside = match.groups()
    if name not in _FORMS:
        raise ValueError(f"unknown schedule {name!r}; there is {', '.join(_FORMS)}")
    words = [word.strip() for word in inside.split(",")]
    plain = [word for word in words if "=" not in word]
    named = {key.strip(): value for key, _, value in (word.partition("=") for word in words if "=" in word)}
    try:
        return _FORMS[name](plain, named)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"cannot read the schedule {shown(text)}: {error}") from None


def _line(kind: type[Ramp], plain: list[str], named: dict[str, str]) -> Schedule:
    if len(plain) != 2:
        raise ValueError("expected two values, where it starts and where it ends")
    options = {key: parse_number(value) for key, value in named.items()}
    schedule = kind(parse_number(plain[0]), parse_number(plain[1]), **options)
    if not 0 <= schedule.since < schedule.until <= 1:
        raise ValueError("expected 0 <= since < until <= 1")
    return schedule


def _drops(plain: list[str], named: dict[str, str]) -> Schedule:
    start, *when = [parse_number(word) for word in plain]
    _check_progress(when)
    if when != sorted(when):
        raise ValueError("the progress of the drops must grow")
    return Drops(start, tuple(when), **{key: parse_number(value) for key, value in named.items()})


def _points(plain: list[str], named: dict[str, str]) -> Schedule:
    if named:
        raise ValueError("points takes progress:value pairs only")
    pairs = [word.split(":") for word in plain]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("expected progress:value pairs, such as 0:0, 0.3:1")
    points = tuple((parse_number(p), parse_number(v)) for p, v in pairs)
    _check_progress([p for p, _ in points])
    if any(a[0] >= b[0] for a, b in pairwise(points)):
        raise ValueError("the progress of the points must grow")
    return Points(points)


def _onecycle(plain: list[str], named: dict[str, str]) -> Schedule:
    if len(plain) != 1:
        raise ValueError("expected one value, the peak")
    schedule = OneCycle(parse_number(plain[0]), **{key: parse_number(value) for key, value in named.items()})
    if not 0 <= schedule.pct_start <= 1:
        raise ValueError(f"pct_start is a share of the training in [0, 1], got {schedule.pct_start:g}")
    if schedule.div_factor <= 0 or schedule.final_div_factor <= 0:
        raise ValueError("div_factor and final_div_factor must be above 0")
    if schedule.steps is not None and not (schedule.steps >= 2 and schedule.steps.is_integer()):
        raise ValueError(f"steps is a whole number from 2 on, got {schedule.steps:g}")
    return schedule


_FORMS = {
    "ramp": lambda plain, named: _line(Ramp, plain, named),
    "cosine": lambda plain, named: _line(Cosine, plain, named),
    "drops": _drops,
    "points": _points,
    "onecycle": _onecycle,
}


def _check_progress(values: list[float]) -> None:
    if wrong := [value for value in values if not 0 <= value <= 1]:
        raise ValueError(f"progress goes from 0 to 1, got {wrong[0]:g}; epoch 215 of 300 is 215/300")


def _share(progress: float, since: float, until: float) -> float:
    if until <= since:
        return 1.0
    return min(max((progress - since) / (until - since), 0.0), 1.0)


def _show(value: float) -> str:
    for text in (f"{value:.6g}", fraction(value)):
        if parse_number(text) == value:
            return text
    return repr(float(value))


def check_range(name: str, value: Schedule, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise ValueError unless a number, or a schedule wherever it is looked at, lies in [low, high]."""
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0) if callable(value) else (0.0,):
        if not low <= (now := at(value, progress)) <= high:
            when = f" at progress {progress:g}" if callable(value) else ""
            bounds = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise ValueError(f"{name} must be {bounds}, got {now:g}{when}")

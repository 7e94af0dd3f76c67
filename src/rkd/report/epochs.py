"""Curves over the epochs of a training: losses, validation, weights, whatever a scheduler sets."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .figures import GRID, INK, MARKERS, QUIET, SERIES, Picture, legend, render
from .values import percent, plain

POINTS = 1500
"""Points of a line that are drawn."""

MOST_LINES = 14
"""Lines of a chart: twice the colours, the second time dashed."""

History = Sequence[Mapping[str, float]]
"""The numbers of each epoch, which `epoch` counts from 1."""


def losses(history: History) -> Picture | None:
    lines, total = _lines(history, "loss."), _column(history, "loss")
    if not total:
        return None

    def add(axes: Axes) -> None:
        _plot(axes, total, "total", INK, "o", width=2.2)

    told = _told("training loss", total)
    return _chart("losses", "Training loss", told, "training loss", lines if len(lines) > 1 else {}, add)


def accuracies(history: History, kept: int | None = None) -> Picture | None:
    """`kept`: the epoch whose weights the student has."""
    named = {"clean": _column(history, "val.clean"), "attacked": _column(history, "val.robust")}
    lines = {name: line for name, line in named.items() if line}
    if not lines:
        return None

    def add(axes: Axes) -> None:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
        if kept is not None and history[0]["epoch"] <= kept <= history[-1]["epoch"]:
            axes.axvline(kept, color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)), label="weights kept", zorder=1)

    told = [f"{name} validation accuracy ends at {percent(line[-1][1])} %" for name, line in lines.items()]
    return _chart("accuracy", "Validation accuracy", "; ".join(told), "validation accuracy", lines, add)


def weights(history: History) -> Picture | None:
    """The weights of the loss's terms, where they are several or move."""
    lines = _lines(history, "weight.")
    if not any(_moves(line) for line in lines.values()):
        return None

    def add(axes: Axes) -> None:
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high)

    told = [f"weight of {name} from {plain(line[0][1])} to {plain(line[-1][1])}" for name, line in lines.items()]
    return _chart("weights", "Adaptive weights", "; ".join(told), "weight in the loss", lines, add)


KNOWN = ("epoch", "loss", "seconds", "lr")


def knobs(history: History) -> Picture | None:
    """Whatever else a scheduler set: temperatures and the like."""
    names = {name for line in history for name in line}
    others = sorted(n for n in names if n not in KNOWN and not n.startswith(("loss.", "weight.", "val.")))
    lines = {name: line for name in others[:MOST_LINES] if (line := _column(history, name))}
    told = f"values per epoch of {', '.join(lines)}"
    return _chart("knobs", "Scheduled values", told, "value", lines) if lines else None


def learning_rate(history: History) -> Picture | None:
    line = _column(history, "lr")
    if len(line) < 2 or not _moves(line):
        return None

    def add(axes: Axes) -> None:
        _plot(axes, line, "", SERIES[2], "")  # without a name, which the axis says
        axes.set_ylim(bottom=0)

    return _chart("learning-rate", "Learning rate", _told("learning rate", line), "learning rate", {}, add)


Line = list[tuple[float, float]]
"""(epoch, value)"""


def _column(history: History, name: str) -> Line:
    line = [(row["epoch"], row[name]) for row in history if name in row]
    every = -(-len(line) // POINTS) if line else 1
    return line if every <= 1 else [*line[:-1:every], line[-1]]


def _lines(history: History, prefix: str) -> dict[str, Line]:
    """Every column whose name begins with `prefix`, by the rest of its name."""
    names = dict.fromkeys(name for row in history for name in row if name.startswith(prefix) and name != prefix)
    return {name.removeprefix(prefix): _column(history, name) for name in list(names)[:MOST_LINES]}


def _moves(line: Line) -> bool:
    return len({value for _, value in line}) > 1


def _chart(
    name: str, title: str, told: str, label: str, lines: Mapping[str, Line], add: Callable[[Axes], None] | None = None
) -> Picture:
    """Lines over the epochs, and what `add` adds to them."""

    def draw(axes: Axes) -> None:
        _plot_all(axes, lines)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.spines["bottom"].set_color(GRID)
        if add is not None:
            add(axes)
        axes.set_ylabel(label)
        legend(axes)

    return render(name, title, told, draw)


def _plot_all(axes: Axes, lines: Mapping[str, Line]) -> None:
    """Every line, `clean` and the attacked ones in the colours that they have everywhere."""
    fixed = {"clean": 0, "adv": 1, "robust": 1, "attacked": 1}
    taken = {fixed[name] for name in lines if name in fixed}
    others = itertools.cycle([place for place in range(len(SERIES)) if place not in taken])
    used: set[int] = set()
    for name, line in lines.items():
        place = fixed[name] if name in fixed and fixed[name] not in used else next(others)
        dashes = (0, (5, 2)) if place in used else "-"
        used.add(place)
        _plot(axes, line, name, SERIES[place], MARKERS[place % len(MARKERS)], style=dashes)


def _plot(axes: Axes, line: Line, name: str, color: str, marker: str, width: float = 1.8, style: object = "-") -> None:
    axes.plot(
        [x for x, _ in line], [y for _, y in line], color=color, label=name, linewidth=width, linestyle=style,
        marker=marker if len(line) <= 40 else "", solid_capstyle="round",
    )  # fmt: skip


def _told(what: str, line: Line) -> str:
    (first, start), (last, end) = line[0], line[-1]
    return f"{what} from {plain(start)} in epoch {first:.0f} to {plain(end)} in epoch {last:.0f}"

"""Charts of an evaluation, and of several: each takes typed values and returns a picture, or None where there is
nothing to draw."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from rkd.storage.text import attack_name, fraction

from .data import Curve, Net
from .figures import ATTACKED, CLEAN, MARKERS, PAPER, QUIET, SERIES, Picture, legend, render
from .values import percent, shortened

MOST_BARS = 20
"""Classes with bars of their own."""

MOST_POINTS = 14
"""Groups of a trade-off: twice the colours, the second time hollow."""


def against_eps(curve: Curve, eps: float | None, clean: float | None) -> Picture:
    """Accuracy by radius, with the 95 % interval where there is one, and the radius of the threat model."""
    points = list(zip(curve.eps, curve.accuracy, curve.intervals, strict=True))
    if clean is not None and points[0][0] > 0:
        points.insert(0, (0.0, clean, None))
    banded = [(radius, band[0], band[1]) for radius, _, band in points if band]

    def draw(axes: Axes) -> None:
        if banded:
            radii, lows, highs = (list(column) for column in zip(*banded, strict=True))
            axes.fill_between(radii, lows, highs, color=ATTACKED, alpha=0.18, linewidth=0)
        marker = "o" if len(points) < 40 else ""
        axes.plot([p[0] for p in points], [p[1] for p in points], color=ATTACKED, marker=marker)
        if eps is not None and eps <= 1.5 * points[-1][0]:
            axes.axvline(eps, color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)))
            right = eps > 0.7 * max(points[-1][0], eps)
            axes.annotate(
                f"the threat, {fraction(eps)}", (eps, 1.0), (-4 if right else 4, -2), color=QUIET, fontsize=10,
                xycoords=("data", "axes fraction"), textcoords="offset points", ha="right" if right else "left",
                va="top",
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if curve.norm == "Linf" and points[-1][0] <= 1:
            top = points[-1][0] * 255
            step = next((s for s in (0.5, 1, 2, 4, 8, 16, 32) if top / s <= 6), 64)
            ticks = [k * step for k in range(int(top / step + 1e-6) + 1)]
            axes.xaxis.set_major_locator(FixedLocator([tick / 255 for tick in ticks]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x * 255:.3g}/255" if x else "0"))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel(f"radius of the attack ({curve.norm or 'eps'})")
        axes.set_ylabel(f"accuracy under {shortened(attack_name(curve.attack), 18) or 'attack'}")

    told = ", ".join(f"{percent(right)} % at {fraction(radius)}" for radius, right, _ in points[:12])
    return render("eps", "Accuracy against eps", f"accuracy by radius: {told}", draw)


@dataclass(frozen=True)
class Bars:
    """Classes in the order of their bars; `shown` of `total`, `worst` under which attack."""

    names: list[str]
    clean: list[float | None]
    attacked: list[float | None]
    total: int
    under: str


def class_bars(net: Net, classes: Sequence[str]) -> Bars | None:
    """Clean and attacked accuracy by class: the worst case, else the strongest attack. With many classes, the worst."""
    clean = net.per_class.get("clean", [])
    attacked, under = net.per_class.get("worst_case"), "worst case"
    if attacked is None and (found := [n for n in net.per_class if n != "clean"]):
        under = min(found, key=lambda name: net.attacks.get(name, 1.0))
        attacked = net.per_class[under]
    attacked = attacked or []
    count = max(len(clean), len(attacked))
    if not count:
        return None
    rows = [
        (
            classes[place] if place < len(classes) else str(place),
            clean[place] if place < len(clean) else None,
            attacked[place] if place < len(attacked) else None,
        )
        for place in range(count)
    ]
    if count > MOST_BARS:
        decisive = 2 if attacked else 1
        known = [row for row in rows if row[decisive] is not None]
        rows = sorted(known, key=lambda row: row[decisive])[:MOST_BARS]  # type: ignore[return-value, arg-type]
    if not any(value is not None for row in rows for value in row[1:]):
        return None
    names, cleans, robusts = (list(column) for column in zip(*rows, strict=True))
    return Bars(names, cleans, robusts, count, under)


def per_class(bars: Bars) -> Picture:
    places = range(len(bars.names))

    def draw(axes: Axes) -> None:
        cleans = [value or 0 for value in bars.clean]
        axes.barh(places, cleans, 0.72, color=PAPER, linewidth=0)  # no grid line shows through the bar
        axes.barh(places, cleans, 0.72, color=CLEAN, alpha=0.35, linewidth=0, label="clean")
        if any(value is not None for value in bars.attacked):
            axes.barh(places, [v or 0 for v in bars.attacked], 0.4, color=ATTACKED, linewidth=0,
                      label=attack_name(bars.under) if bars.under != "worst case" else bars.under)  # fmt: skip
        axes.set_yticks(places, [shortened(name, 20) for name in bars.names])
        axes.set_ylim(len(bars.names) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("accuracy")
        legend(axes)

    told = "; ".join(
        f"{name}: clean {percent(clean)} %, {bars.under} {percent(attacked)} %"
        for name, clean, attacked in zip(bars.names, bars.clean, bars.attacked, strict=True)
    )
    return render("per-class", "Accuracy by class", told, draw, height=0.9 + 0.24 * len(bars.names))


def reliability(net: Net) -> Picture | None:
    """Accuracy by confidence: clean, and the attacks, strongest first."""
    attacks = [name for name in net.calibration if name != "clean"]
    strongest = sorted(attacks, key=lambda name: net.attacks.get(name, 1.0))[:3]
    chosen = [name for name in ("clean", *strongest) if name in net.calibration and net.calibration[name].bins]
    if not chosen:
        return None

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)))
        colors = iter(SERIES[1:])
        for name, marker in zip(chosen, MARKERS, strict=False):
            color = CLEAN if name == "clean" else next(colors)
            bins = sorted(net.calibration[name].bins, key=lambda b: b[1])
            most = max(count for count, _, _ in bins)
            sizes = [8 + 60 * count / most for count, _, _ in bins]
            # An image or two make no accuracy: such bins have a small mark, and no line runs through them.
            firm = [b for b in bins if b[0] >= max(5, 0.01 * sum(count for count, _, _ in bins))]
            axes.plot([b[1] for b in firm], [b[2] for b in firm], color=color, linewidth=1.2, marker=marker,
                      markersize=2.5, label=attack_name(name))  # fmt: skip
            axes.scatter([b[1] for b in bins], [b[2] for b in bins], sizes, color=color, marker=marker, linewidths=0)
        for place, words, align in (((0.04, 0.96), "too modest", "left"), ((0.97, 0.04), "too sure", "right")):
            axes.text(*place, words, color=QUIET, ha=align, va="center", fontsize=10, style="italic")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.02, 1.04)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        legend(axes)

    told = "; ".join(f"{name}: expected calibration error {percent(net.calibration[name].ece)} %" for name in chosen)
    return render("reliability", "Reliability", told, draw, height=3.4)


@dataclass(frozen=True)
class Point:
    """A group of runs in the trade-off: mean, and how far the bars reach down and up. `runs`: each run's own place."""

    name: str
    clean: float
    robust: float
    clean_bar: tuple[float, float]
    robust_bar: tuple[float, float]
    runs: list[tuple[float, float]]


def trade_off(points: Sequence[Point], robust: str) -> Picture | None:
    """Clean against robust accuracy. Bars: one run's 95 % interval, or the standard deviation of several seeds."""
    shown = list(points[:MOST_POINTS])
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        for place, point in enumerate(shown):
            color, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            if len(point.runs) > 1:
                axes.scatter([r[0] for r in point.runs], [r[1] for r in point.runs], 14, color=color, alpha=0.45,
                             marker=marker, linewidths=0)  # fmt: skip
            axes.errorbar(
                [point.clean], [point.robust], xerr=[[point.clean_bar[0]], [point.clean_bar[1]]],
                yerr=[[point.robust_bar[0]], [point.robust_bar[1]]], color=color, marker=marker, markersize=7,
                markerfacecolor=color if place < len(SERIES) else "none", linewidth=1.2, capsize=2.5,
                linestyle="none", label=point.name,
            )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))  # 95%, not 95.00%
            axis.set_minor_formatter(NullFormatter())
        axes.margins(0.08)
        axes.set_xlim(*_widened(*axes.get_xlim()))
        axes.set_ylim(*_widened(*axes.get_ylim()))
        axes.set_xlabel("clean accuracy")
        axes.set_ylabel(f"accuracy under attack ({shortened(robust, 20)})")
        legend(axes, 30)

    told = "; ".join(f"{p.name}: clean {percent(p.clean)} %, attacked {percent(p.robust)} %" for p in shown)
    return render("trade-off", "Clean against robust accuracy", told, draw, height=3.6 + 0.08 * len(shown))


def _widened(low: float, high: float, least: float = 0.02) -> tuple[float, float]:
    """At least two points wide: a difference of a tenth shall not look like one of ten."""
    missing = max(0.0, least - (high - low)) / 2
    return low - missing, high + missing

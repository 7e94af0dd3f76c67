"""The page of a comparison."""

from __future__ import annotations

from pathlib import Path

from rkd import __version__
from rkd.core.errors import RkdError

from . import charts
from .charts import Point
from .compare import Comparison, Group, Value
from .page import render_page, write_page, write_pictures
from .tables import cells, to_latex, where


def write_comparison(comparison: Comparison, path: Path) -> list[Path]:
    """Write the page to `path`, and its picture beside it. Returns all files written. Raises RkdError."""
    if path.is_dir():
        raise RkdError(f"{path} is a folder; name a file, such as {path / 'compare.html'}")
    points = [point for group in comparison.groups if (point := _point(group, comparison.robust)) is not None]
    picture = charts.trade_off(points, comparison.robust_name)
    titles, rows = cells(comparison)
    html = render_page(
        "compare.html.jinja",
        version=__version__,
        title=f"{len(comparison.runs)} runs compared",
        comparison=comparison,
        where=where(comparison),
        picture=picture,
        titles=titles,
        rows=list(zip(comparison.groups, rows, strict=True)),
        latex=to_latex(comparison),
    )
    pictures = write_pictures(path.parent, [picture], f"{path.stem}-") if picture else []
    write_page(path, html)
    return [path, *pictures]


def _point(group: Group, robust: str | None) -> Point | None:
    if robust is None:
        return None
    clean, attacked = group.value("clean"), group.value(robust)
    if clean is None or attacked is None:
        return None
    places = [(run.measure("clean") or 0.0, run.measure(robust) or 0.0) for run in group.runs]
    return Point(group.name, clean.mean, attacked.mean, _bar(clean), _bar(attacked), places)


def _bar(value: Value) -> tuple[float, float]:
    """How far the bar reaches down and up."""
    if value.std is not None:
        return value.std, value.std
    if value.interval is None:
        return 0.0, 0.0
    low, high = value.interval
    return max(0.0, value.mean - low), max(0.0, high - value.mean)

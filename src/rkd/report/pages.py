"""The pages: of one run, of one saved evaluation, of a comparison.

Everything that a template shows is escaped, unless a module of this room made it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rkd import __version__
from rkd.core.errors import RkdError
from rkd.storage.files import check_no_link, remove_abandoned, write_atomic
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import attack_name, fraction

from . import charts, epochs, summary, values
from .charts import Point
from .compare import Comparison, Group, Value
from .data import Net
from .figures import Picture
from .gallery import Gallery, read_gallery
from .origin import origin
from .read import read_run
from .tables import against_baselines, cells, sizes, to_latex, where


@dataclass(frozen=True)
class Report:
    """A page, its pictures, and a line about everything in the folder that could not be shown."""

    html: str
    pictures: list[Picture]
    left_out: list[str]


def write_report(folder: RunFolder, citations: Mapping[str, str] | None = None) -> Path:
    """Write `report.html` and `plots/` into a run's folder, finished or not, or into the folder of a saved evaluation;
    what was there is replaced.

    `citations`: BibTeX entries by their keys; without them the page says how to get them. Returns the page's path.
    Raises RkdError if the folder is no run or cannot be written.
    """
    return save_report(build_report(folder, citations), folder)


def save_report(report: Report, folder: RunFolder) -> Path:
    """Write a report into its run's folder. Returns the page's path. Raises RkdError."""
    write_pictures(folder.path / "plots", report.pictures)
    write_page(folder.page, report.html)  # the last, for who looks whether there is a report
    return folder.page


def build_report(folder: RunFolder, citations: Mapping[str, str] | None = None) -> Report:
    """The report of a run or a saved evaluation, unwritten. Raises RkdError if the folder is no run."""
    run = read_run(folder)
    net, classes = run.student, run.classes
    training = _drawn(
        epochs.losses(run.history), epochs.accuracies(run.history, run.kept_epoch), epochs.weights(run.history),
        epochs.knobs(run.history), epochs.learning_rate(run.history),
    )  # fmt: skip
    eps = bars = reliability = gallery = None
    if net is not None:
        if net.curve is not None:
            eps = charts.against_eps(net.curve, run.threat[1], net.clean)
        if (found := charts.class_bars(net, classes)) is not None:
            bars = (found, charts.per_class(found))
        reliability = charts.reliability(net)
        gallery = _gallery(folder, net, run.left_out)
    kind = "evaluation" if run.evaluated else "run"
    html = render_page(
        f"{kind}.html.jinja",
        version=__version__,
        kind=kind,
        made_from=f"the {kind}",
        whose="net" if run.evaluated else "student",
        cited=summary.place(run),
        evaluated=summary.evaluated(run) if run.evaluated else [],
        run=run,
        net=net,
        title=run.name,
        badge=summary.badge(run),
        facts=summary.facts(run),
        tiles=summary.tiles(run) if net else [],
        origin=None if run.evaluated else origin(run),
        table=summary.results(net, run.teachers, run.baseline) if net else None,
        doubts=summary.doubts(run),
        training=training,
        eps=eps,
        bars=bars,
        reliability=reliability,
        gallery=gallery,
        named=lambda label: _named(classes, label),
        cost=None if run.evaluated and not run.sizes else summary.cost(run),
        exports=[(export, *summary.exported(export)) for export in run.exports],
        commands=summary.commands(run),
        citations=None if citations is None else list(citations.values()),
        machine=summary.machine(run),
        absent=summary.absent(run, gallery),
        left_out=list(dict.fromkeys(run.left_out)),
    )
    pictures = [*training, *_drawn(eps, bars[1] if bars else None, reliability)]
    return Report(html, pictures, list(dict.fromkeys(run.left_out)))


def _named(classes: list[str], label: int | None) -> str:
    """A class by its number."""
    if label is None:
        return "?"
    return values.shortened(classes[label], 30) if label < len(classes) else str(label)


def _drawn(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def _gallery(folder: RunFolder, net: Net, left_out: list[str]) -> Gallery | None:
    try:
        return read_gallery(folder.examples, net.examples)
    except RkdError as error:
        left_out.append(f"{folder.examples.name}: {error}")
        return None


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
        against=against_baselines(comparison),
        sizes=sizes(comparison),
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


def render_page(template: str, **content: Any) -> str:
    """A page of `templates/` with its content. It needs nothing beside itself: no file, no network, no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (values.percent, values.between, values.duration, values.plain, values.grouped, values.magnitude,
               attack_name)  # fmt: skip
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"fraction": fraction, "radius": values.radius, "milliseconds": values.milliseconds}
    return environment.get_template(template).render(**content)


def write_page(path: Path, html: str) -> None:
    """Raises RkdError."""
    remove_abandoned(path.parent)
    write_atomic(path, html.encode())


def write_pictures(folder: Path, pictures: list[Picture], prefix: str = "") -> list[Path]:
    """Each picture as `PREFIXname.svg` and `PREFIXname.png`. Raises RkdError."""
    check_no_link(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
    except OSError as error:
        raise RkdError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    written = []
    for picture in pictures:
        for ending, content in (("svg", picture.svg), ("png", picture.png)):
            written.append(folder / f"{prefix}{picture.name}.{ending}")
            write_atomic(written[-1], content)
    return written

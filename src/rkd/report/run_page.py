"""The report of one run, or of one saved evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rkd import __version__
from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder

from . import charts, epochs, summary
from .data import Net
from .draw import Picture
from .gallery import Gallery, read_gallery
from .origin import origin
from .page import render_page, write_page, write_pictures
from .read import read_run
from .values import shortened


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
    path = folder.path / "report.html"
    write_pictures(folder.path / "plots", report.pictures)
    write_page(path, report.html)
    return path


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
        table=summary.results(net, run.teachers) if net else None,
        doubts=summary.doubts(run),
        training=training,
        eps=eps,
        bars=bars,
        reliability=reliability,
        gallery=gallery,
        named=lambda label: _named(classes, label),
        cost=None if run.evaluated else summary.cost(run),
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
    return shortened(classes[label], 30) if label < len(classes) else str(label)


def _drawn(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def _gallery(folder: RunFolder, net: Net, left_out: list[str]) -> Gallery | None:
    try:
        return read_gallery(folder.examples, net.examples)
    except RkdError as error:
        left_out.append(f"{folder.examples.name}: {error}")
        return None

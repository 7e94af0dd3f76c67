"""Fixtures of this room: pictures as they were drawn, one run's page, a comparison of four runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes

from rkd.report import charts, compare, epochs, figures, write_report
from rkd.report.compare import Comparison
from rkd.storage.runfolder import RunFolder

from .folders import Page, make_run, net


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every picture, as they were drawn on."""
    kept: list[Axes] = []
    render = figures.render

    def spy(name, title, alt, paint, height=figures.HEIGHT):
        def painted(axes: Axes) -> None:
            paint(axes)
            kept.append(axes)

        return render(name, title, alt, painted, height)

    for module in (charts, epochs):
        monkeypatch.setattr(module, "render", spy)
    return kept


def lines(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def html(folder: RunFolder) -> str:
    return write_report(folder, {"zhao": "@inproceedings{zhao, title={Enhanced}}"}).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def seeds(tmp_path: Path) -> list:
    """Three seeds of one method, one run of another."""
    runs = [
        make_run(tmp_path / f"mtard-{seed}", config={"seed": seed}, student=net(clean, 0.7, pgd), examples=False)
        for seed, clean, pgd in ((0, 0.95, 0.6), (1, 0.97, 0.5), (2, 0.96, 0.7))
    ]
    other = {"loss": {"name": "pgd-at"}, "teachers": [], "schedulers": {}}
    return [*runs, make_run(tmp_path / "at", config=other, student=net(0.94, 0.72, 0.65), examples=False)]


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    return compare(seeds(tmp_path))

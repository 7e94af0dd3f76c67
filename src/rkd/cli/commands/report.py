"""`rkd report`: one page about a run, or about an evaluation that `rkd eval --save` kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rkd.core.errors import ConfigError
from rkd.storage.text import command

from ..complete import values
from ..options import App, json_option, out_option, pass_app, plugin_option, verbosity_options

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog
    from rkd.workflow.folders import RunFolder


@click.command("report", short_help="Write a page about a run or a saved evaluation, with pictures.")
@click.argument("run", metavar="RUN|EVALUATION", type=click.Path(), shell_complete=values(runs=True))
@out_option
@json_option
@verbosity_options
@plugin_option
@pass_app
def report(app: App, run: str, out: str) -> None:
    """Write RUN/report.html, one page that needs no network, and its pictures to RUN/plots.

    RUN is a run's folder, or its name under --out. Of a run that is not finished the page shows what there is.
    EVALUATION is a folder that `rkd eval --save` wrote.
    """
    from rkd.workflow.folders import RunFolder, find_run

    path = find_run(run, out, evaluations=True)
    with app.terminal.guarded():
        folder = RunFolder.open_results(path)
        if app.terminal.animated:
            app.terminal.doing("writing the report")
        page, left_out = report_on(folder, app.catalog(), app)
    pictures = sorted(str(file) for file in (path / "plots").glob("*.*"))
    for line in left_out:
        app.terminal.message(f"left out: {line}", always=True)
    if app.json:
        app.terminal.json({"run": str(path), "report": str(page), "pictures": pictures, "left_out": left_out})
    else:
        app.terminal.result(
            f"wrote {page}" + (f" and {len(pictures)} pictures in {path / 'plots'}" if pictures else "")
        )


def report_on(folder: RunFolder, catalog: Catalog, app: App) -> tuple[Path, list[str]]:
    """Write a run's report with its citations. Returns the page, and what of the folder could not be shown."""
    from rkd.report import build_report, save_report

    citations, problem = citations_of(folder, catalog, app)
    made = build_report(folder, citations)
    return save_report(made, folder), [*made.left_out, *([problem] if problem else [])]


def report_at_end(folder: RunFolder, catalog: Catalog, app: App) -> tuple[Path | None, list[str]]:
    """Write the page of what just ended. Returns it, and what is to be told of it. The results are there: whatever goes
    wrong with a picture must not make it look failed."""
    try:
        with app.terminal.guarded():
            app.terminal.doing("writing the report")
            page, left_out = report_on(folder, catalog, app)
    except Exception as error:
        app.terminal.warning(
            f"the report could not be written ({error}); `{command('report', folder.path)}` tries again"
        )
        return None, []
    return page, [*(f"left out of the report: {line}" for line in left_out), f"report: {page}"]


def citations_of(folder: RunFolder, catalog: Catalog, app: App) -> tuple[dict[str, str] | None, str]:
    """BibTeX entries of a run's parts by their keys, as `rkd cite` gives them; None and the reason where its
    configuration cannot be read for parts."""
    from .lookup.cite import components

    citations: dict[str, str] = {}
    try:
        for entry in components(folder, catalog, app.terminal.warning):
            citations |= entry.citations()
    except (ConfigError, KeyError, TypeError, AttributeError, ValueError) as error:
        # A configuration that no run wrote; `rkd run` would say what is wrong with it.
        name = (folder.evaluation if folder.is_evaluation else folder.config).name
        return None, f"citations: {name} names no parts that can be read ({type(error).__name__})"
    return citations, ""

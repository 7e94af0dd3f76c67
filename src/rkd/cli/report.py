"""`rkd report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .shared import RUNS, App, find_run, json_option, pass_app, plugin_option, verbosity_options

if TYPE_CHECKING:
    from rkd.core.runfolder import RunFolder
    from rkd.registry.catalog import Catalog


@click.command("report", short_help="Write a page about a run, with pictures.")
@click.argument("run", metavar="RUN", type=click.Path())
@click.option("--out", metavar="DIR", default=RUNS, show_default=True, help="Where runs named without a path are.")
@json_option
@verbosity_options
@plugin_option
@pass_app
def report(app: App, run: str, out: str) -> None:
    """Write RUN/report.html, one page that needs no network, and its pictures to RUN/plots.

    RUN is a run's folder, or its name under --out. Of a run that is not finished the page shows what there is.
    """
    path = find_run(run, out)
    with app.terminal.guarded():
        from rkd.core.runfolder import RunFolder

        folder = RunFolder.open(path)
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


def citations_of(folder: RunFolder, catalog: Catalog, app: App) -> tuple[dict[str, str] | None, str]:
    """BibTeX entries of a run's parts by their keys, as `rkd cite` gives them; None and the reason where its
    configuration cannot be read for parts."""
    from rkd.core.errors import ConfigError

    from .cite import citations, parts_of

    found: dict[str, str] = {}
    try:
        for entry in parts_of(folder.path, catalog, app):
            for key, text in citations(entry).items():
                found.setdefault(key, text)
    except (ConfigError, KeyError, TypeError, AttributeError, ValueError) as error:
        # A configuration that no run wrote; `rkd run` would say what is wrong with it.
        return None, f"citations: config.toml names no parts that can be read ({type(error).__name__})"
    return found, ""

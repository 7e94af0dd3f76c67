"""`rkd compare`: several runs, or evaluations that `rkd eval --save` kept, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rkd.core.errors import RkdError

from ..complete import values
from ..options import App, json_option, out_option, pass_app, verbosity_options

if TYPE_CHECKING:
    from rkd.report import Comparison

    from ..terminal import Column


@click.command("compare", short_help="Put several runs into one table.")
@click.argument("runs", metavar="RUN|EVALUATION...", nargs=-1, required=True, type=click.Path(),
                shell_complete=values(runs=True))  # fmt: skip
@click.option("--attack", metavar="NAME", help="Measure of robustness for W-Robust, NRR and the trade-off; the worst "
              "case unless given.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="The runs as CSV on stdout.")
@click.option("--latex", "as_latex", is_flag=True, help="The table in LaTeX (booktabs) on stdout.")
@click.option("--html", metavar="FILE", type=click.Path(), help="Also write a page with the clean/robust trade-off.")
@out_option
@json_option
@verbosity_options
@pass_app
def compare(
    app: App, runs: tuple[str, ...], attack: str | None, as_csv: bool, as_latex: bool, html: str | None, out: str
) -> None:
    """Clean and attacked accuracy of finished runs, side by side.

    RUN is the folder of a run, or of a sweep with all its runs, or a name under --out; EVALUATION a folder that `rkd
    eval --save` wrote. Runs that differ by seed alone share a row, and so do evaluations of such runs: mean ± standard
    deviation. A single one has its 95 % interval.
    """
    if app.json + as_csv + as_latex > 1:
        raise RkdError("--json, --csv and --latex each fill stdout: give one of them")
    from rkd.workflow.folders import RunFolder, find_results

    # A shell's `runs/*` names whatever lies beside the runs, too.
    files = [run for run in runs if Path(run).is_file()] if len(runs) > 1 else []
    folders = [path for run in runs if run not in files for path in find_results(run, out)]
    if files:
        app.terminal.warning(f"left out, since they are files: {', '.join(files)}")
    with app.terminal.guarded():
        from rkd import report

        comparison = report.compare([RunFolder.open_results(path) for path in folders], attack)
        written = report.write_comparison(comparison, Path(html)) if html else []
    if app.json:
        app.terminal.json(report.to_json(comparison) | {"written": [str(path) for path in written]})
    elif as_csv or as_latex:
        app.terminal.result((report.to_csv(comparison) if as_csv else report.to_latex(comparison)).rstrip("\n"))
    else:
        _show(comparison, app)
    for warning in comparison.warnings:
        app.terminal.warning(warning)
    if written:
        app.terminal.message(f"wrote {', '.join(map(str, written))}")


def show_comparison(paths: Sequence[Path], app: App) -> None:
    """The table of runs that are known to be finished, with its warnings; one JSON object with --json."""
    from rkd.workflow.folders import RunFolder

    with app.terminal.guarded():
        from rkd import report

        comparison = report.compare([RunFolder.open(path) for path in paths])
    if app.json:
        app.terminal.json(report.to_json(comparison))
    else:
        _show(comparison, app)
    for warning in comparison.warnings:
        app.terminal.warning(warning)


def _show(comparison: Comparison, app: App) -> None:
    """The table; in a terminal that is too narrow for it without the intervals, which --csv has."""
    from rkd.report import basis, where

    from ..terminal import fits

    title = f"Accuracy in % on {where(comparison)}{basis(comparison)}"
    columns, rows = _table(comparison)
    if not fits(columns, rows, app.terminal.out.width):
        columns, short = _table(comparison, intervals=False)
        if short != rows:
            title += "; too narrow for 95 % intervals: --csv has them"
        rows = short
    app.terminal.table(columns, rows, title)


def _table(comparison: Comparison, intervals: bool = True) -> tuple[list[Column], list[list[str]]]:
    from rkd.report import cells

    titles, rows = cells(comparison, intervals)
    several = len(comparison.runs) > len(comparison.groups)
    columns: list[Column] = ["", *([("seeds", "right")] if several else []), *((title, "right") for title in titles)]
    return columns, [
        [group.name, *([str(len(group.runs))] if several else []), *row]
        for group, row in zip(comparison.groups, rows, strict=True)
    ]

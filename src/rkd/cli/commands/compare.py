"""`rkd compare`: several runs, or evaluations that `rkd eval --save` kept, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if as_csv or as_latex:
        app.terminal.result((report.to_csv(comparison) if as_csv else report.to_latex(comparison)).rstrip("\n"))
    else:
        show_comparison(comparison, app, {"written": [str(path) for path in written]})
    for warning in comparison.warnings:
        app.terminal.warning(warning)
    if written:
        app.terminal.message(f"wrote {', '.join(map(str, written))}")


def show_comparison(comparison: Comparison, app: App, more: dict[str, Any]) -> None:
    """The table, in a terminal that is too narrow for it without the intervals; one JSON object, with `more`, with
    --json."""
    from rkd.report import against_baselines, basis, cells, sizes, to_json, where

    from ..terminal import fits

    if app.json:
        app.terminal.json(to_json(comparison) | more)
        return
    title = f"Accuracy in % on {where(comparison)}{basis(comparison)}"
    titles, rows = cells(comparison)
    several = len(comparison.runs) > len(comparison.groups)
    names = [[group.name, *([str(len(group.runs))] if several else [])] for group in comparison.groups]
    columns: list[Column] = ["", *((text, "right") for text in [*(["seeds"] if several else []), *titles])]
    whole = [[*name, *row] for name, row in zip(names, rows, strict=True)]
    if not fits(columns, whole, app.terminal.out.width):
        _, short = cells(comparison, intervals=False)
        title += "; too narrow for 95 % intervals: --csv has them" if short != rows else ""
        whole = [[*name, *row] for name, row in zip(names, short, strict=True)]
    app.terminal.table(columns, whole, title)
    for line in against_baselines(comparison):
        app.terminal.result(line)
    heads, sized = sizes(comparison)
    if sized:
        app.terminal.table(["", *((text, "right") for text in heads)], sized, "Sizes; latency on each run's machine")

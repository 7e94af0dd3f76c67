"""`rkd bench`: where the time of a training step goes."""

from typing import Any

import click

from ..options import json_option, pass_app, plugin_option, verbosity_options
from ..settings import run_table
from . import run as train

OTHERS = {
    "name", "out", "resume", "accept_changes", "report", "dry_run", "fast_dev_run", "on_nan", "evaluate", "json",
    "quiet", "verbose", "plugin",
}  # fmt: skip
"""Options of `rkd run` that say nothing about a training step."""


@click.command("bench", short_help="Time a training step and its parts.")
@click.option("--seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="How long to measure, "
              "about.")  # fmt: skip
@json_option
@verbosity_options
@plugin_option
@pass_app
def bench(app: Any, recipe: str | None, sets: tuple[str, ...], seconds: float, **options: Any) -> None:
    """Time a training step and its parts, beside what the machine itself reaches, and tell what the run would cost.

    RECIPE and options are those of `rkd run`. Nothing is trained to the end, prepared or written.
    """
    app.load_torch()
    from rkd.workflow.forecast import measure

    from ..progress import Display

    catalog = app.catalog()
    table = run_table(recipe, options, sets, catalog)
    with app.terminal.guarded():
        measured = measure(table, catalog, Display(app.terminal), seconds)
    if app.json:
        app.terminal.json(measured)
    else:
        show(measured, app.terminal)


bench.params = [p for p in train.run.params if p.name not in OTHERS] + bench.params


def show(measured: dict[str, Any], terminal: Any) -> None:
    """The result as a table and three lines."""
    from ..terminal import duration, memory

    step, images = measured["step_seconds"], measured["images"]
    rows = []
    for part, seconds in measured["parts_seconds"].items():
        operations = measured["parts_flops"][part]
        rate = f"{operations / seconds / 1e9:,.0f}" if operations and seconds else ""
        rows.append([part, f"{1000 * seconds:,.1f}", f"{100 * seconds / sum(measured['parts_seconds'].values()):.1f}",
                     f"{operations / 1e9:,.1f}" if operations else "", rate])  # fmt: skip
    rows.append(["whole step", f"{1000 * step:,.1f}", "", f"{sum(measured['parts_flops'].values()) / 1e9:,.1f}",
                 f"{measured['flops_per_second'] / 1e9:,.0f}"])  # fmt: skip
    title = (
        f"{measured['loss']}, {measured['student']} on {measured['data']}, {images} images, {measured['precision']}, "
        f"{measured['device']}" + (f", {measured['threads']} threads" if measured["device"] == "cpu" else "")
    )
    right = [(name, "right") for name in ("ms", "%", "GFLOP", "GFLOP/s")]
    terminal.table(["part of a step", *right], rows, title)
    peaks = measured["machine_flops_per_second"]
    reached = ", ".join(f"{kernel} {rate / 1e9:,.0f} GFLOP/s" for kernel, rate in peaks.items())
    terminal.result(
        f"engine: {'; '.join(measured['engine'])}: {1000 * step:,.1f} ms a step; "
        f"with nets as they are {1000 * measured['plain_step_seconds']:,.1f} ms"
    )
    terminal.result(f"the machine itself: {reached}")
    terminal.result(f"{images / step:,.0f} images a second, {memory(measured['peak_bytes'])} at most")
    total = duration(measured["training_seconds"])
    terminal.result(f"{measured['steps']:,} steps: about {total}, without validation and evaluation")

"""`rkd bench`: where the time of a training step goes."""

from __future__ import annotations

from typing import Any

import click

from ..shared import json_option, pass_app, plugin_option, verbosity_options
from . import run as train

OTHERS = {"name", "out", "resume", "report", "dry_run", "on_nan", "evaluate", "json", "quiet", "verbose", "plugin"}
"""Options of `rkd run` that say nothing about a training step."""


@click.command("bench", short_help="Time a training step and its parts.")
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="How long to measure, about.",
)
@json_option
@verbosity_options
@plugin_option
@pass_app
def bench(app: Any, recipe: str | None, sets: tuple[str, ...], seconds: float, **options: Any) -> None:
    """Time a training step and its parts, beside what the machine itself reaches, and tell what the run would cost.

    RECIPE and options are those of `rkd run`. Nothing is trained to the end, prepared or written.
    """
    from rkd.workflow.forecast import measure

    from ..progress import Display
    from ..settings import run_table

    catalog = app.catalog()
    table = run_table(recipe, options | {"on_nan": None, "evaluate": ()}, sets, catalog)
    with app.terminal.guarded():
        found = measure(table, catalog, Display(app.terminal), seconds)
    if app.json:
        app.terminal.json(found)
    else:
        show(found, app.terminal)


bench.params = [p for p in train.run.params if p.name not in OTHERS] + bench.params


def show(found: dict[str, Any], terminal: Any) -> None:
    """The result as a table and three lines."""
    from ..terminal import duration, memory

    step, images = found["step_seconds"], found["images"]
    rows = []
    for part, seconds in found["parts_seconds"].items():
        operations = found["parts_flops"][part]
        rate = f"{operations / seconds / 1e9:,.0f}" if operations and seconds else ""
        rows.append([part, f"{1000 * seconds:,.1f}", f"{100 * seconds / sum(found['parts_seconds'].values()):.1f}",
                     f"{operations / 1e9:,.1f}" if operations else "", rate])  # fmt: skip
    rows.append(["whole step", f"{1000 * step:,.1f}", "", f"{sum(found['parts_flops'].values()) / 1e9:,.1f}",
                 f"{found['flops_per_second'] / 1e9:,.0f}"])  # fmt: skip
    title = (
        f"{found['loss']}, {found['student']} on {found['data']}, {images} images, {found['precision']}, "
        f"{found['device']}" + (f", {found['threads']} threads" if found["device"] == "cpu" else "")
    )
    right = [(name, "right") for name in ("ms", "%", "GFLOP", "GFLOP/s")]
    terminal.table(["part of a step", *right], rows, title)
    reached = ", ".join(f"{what} {rate / 1e9:,.0f} GFLOP/s" for what, rate in found["machine_flops_per_second"].items())
    terminal.result(
        f"engine: {'; '.join(found['engine'])}: {1000 * step:,.1f} ms a step; "
        f"with nets as they are {1000 * found['plain_step_seconds']:,.1f} ms"
    )
    terminal.result(f"the machine itself: {reached}")
    terminal.result(f"{images / step:,.0f} images a second, {memory(found['peak_bytes'])} at most")
    terminal.result(
        f"{found['steps']:,} steps: about {duration(found['training_seconds'])}, without validation and evaluation"
    )

"""`rkd run`: teachers, training, evaluation, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rkd.core.errors import RkdError

from ..shared import RUNS, App, find_run, json_option, plugin_option, verbosity_options

FREE = {"out", "dry_run", "resume", "report", "json", "quiet", "verbose", "plugin"}
"""Options that say nothing about the run itself: they go with --resume."""


@click.command("run", short_help="Prepare teachers, train a student, evaluate it.")
@click.argument("recipe", required=False, type=click.Path())
@click.option("--dataset", metavar="NAME", help="Data set; digits needs no download.")
@click.option("--data-dir", metavar="DIR", help="Where the data set's files are.")
@click.option("--download", is_flag=True, help="Allow the data set to be downloaded.")
@click.option("--student", metavar="NET[+CONVERSION...]", help="Student, such as resnet18 or resnet18+aux-bn.")
@click.option(
    "--teacher",
    multiple=True,
    metavar="[ROLE=]REF",
    help="Teacher: MODEL@WEIGHTS, a finished run's folder, or MODEL alone, which is prepared; repeatable.",
)
@click.option("--loss", metavar="NAME", help="Method, such as mtard-anl (the default), rslad, trades, pgd-at.")
@click.option("--attack", multiple=True, metavar="[VIEW=]NAME", help="Attack of the training instead of the method's.")
@click.option("--objective", metavar="NAME", help="What the attack maximises instead of the method's.")
@click.option("--scheduler", multiple=True, metavar="NAME", help="Adaptive weights; `none`: without the method's own.")
@click.option("--augment", multiple=True, metavar="NAME", help="Augmentation; repeatable, in order.")
@click.option("--with", "extension", multiple=True, metavar="EXTENSION", help="Extension, such as awp or ema.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--auto-batch", is_flag=True, help="Find the fewest parts of a batch that fit into memory.")
@click.option("--grad-accumulation", type=int, metavar="N", help="Compute each batch in N parts, to save memory.")
@click.option("--sync-bn", is_flag=True, help="Under torchrun: batch norm over the samples of all processes.")
@click.option("--lr", metavar="X", help="Learning rate at the start of its schedule.")
@click.option("--seed", type=int)
@click.option("--evaluate", multiple=True, metavar="A,B,...", help="Attacks of the final evaluation: fgsm,pgd-sat,cw.")
@click.option("--device", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1, ...")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "auto"]),
    help="Inside the nets: fp32 (the default), bf16, fp16 (GPUs); auto: bf16 on GPUs that have it.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "plain", "folded", "channels-last", "fused", "compiled"]),
    help="How the attacked student runs: auto (the default) on a frozen copy with folded batch norms and, on CPUs, "
    "fused layers; plain as it is; the others force one kind of copy (compiled: torch.compile).",
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "skip", "rollback"]),
    help="A loss or weight that is not finite: stop (the default), skip the batch, or go back an epoch.",
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting, such as attack.steps=7; repeatable."
)
@click.option("--name", help="Name of the run's folder; made of method, student, data and seed unless given.")
@click.option("--out", metavar="DIR", default=RUNS, show_default=True, help="Where the run's folder goes.")
@click.option("--resume", metavar="RUN", help="Continue an interrupted run: its folder, or its name under --out.")
@click.option("--report/--no-report", default=True, help="Write report.html, a page about the run, at its end.")
@click.option("--dry-run", is_flag=True, help="Show the resolved recipe and what it costs; write nothing.")
@json_option
@verbosity_options
@plugin_option
@click.pass_context
def run(context: click.Context, recipe: str | None, name: str | None, out: str, resume: str | None, report: bool,
        dry_run: bool, sets: tuple[str, ...], **options: Any) -> None:  # fmt: skip
    """Prepare teachers, train a student, evaluate it, and write all of it into a folder.

    RECIPE is a shipped recipe's name (`rkd recipes`) or a .toml file; options go on top of it, --set on top of both.
    Without a recipe or options: mtard-anl on digits.
    """
    app = context.ensure_object(App)
    ranks = app.meet()
    if resume is not None:
        path = _resumable(context, resume, out)
        recipe = str(path / "config.toml")
    catalog = app.catalog()

    from ..runner import carry_out
    from ..settings import begun, run_folder, run_table

    table = run_table(recipe, options, sets, catalog)
    again = resume is not None
    if not again:
        path, again = ranks.once(lambda: begun(table, name, out, ranks) or (run_folder(table, name, out), False))
    carry_out(table, catalog, path, app, resume=again, dry_run=dry_run, report=report)


def _resumable(context: click.Context, text: str, out: str) -> Path:
    from rkd.storage.runfolder import RunFolder

    def shown(parameter: click.Parameter) -> str:
        return "RECIPE" if isinstance(parameter, click.Argument) else parameter.opts[0]

    given = [shown(p) for p in context.command.params if p.name not in FREE and p.name != "help"
             and context.get_parameter_source(str(p.name)) is not ParameterSource.DEFAULT]  # fmt: skip
    if given:
        raise RkdError(f"--resume continues a run exactly as its config.toml says; take out {', '.join(given)}")
    folder = RunFolder(find_run(text, out))
    if folder.finished:
        raise RkdError(f"{folder.path} is finished; look at it with `rkd eval {folder.path}`, "
                       f"repeat it with `rkd run {folder.config}`")  # fmt: skip
    return folder.path

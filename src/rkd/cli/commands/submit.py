"""`rkd submit`: a run as a job of SLURM."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from rkd.core.errors import ConfigError, RkdError

from ..options import App, json_option, pass_app, verbosity_options


def job_options(command: Callable[..., Any]) -> Any:
    """What a job asks of the cluster."""
    options = [
        click.option("--cluster", type=click.Choice(["slurm", "local"]), help="SLURM unless given."),
        click.option("--partition", metavar="NAME"),
        click.option("--nodes", type=click.IntRange(1, 1024), default=1, show_default=True),
        click.option("--processes", type=click.IntRange(1, 1024), default=1, show_default=True,
                     help="Processes on each node, one for each GPU."),
        click.option("--gpus", type=click.IntRange(0, 1024),
                     help="GPUs on each node; as many as processes unless given."),
        click.option("--cpus", type=click.IntRange(1, 1024), help="CPU cores for each process."),
        click.option("--memory", type=float, metavar="GB", help="Memory of each node."),
        click.option("--minutes", type=click.IntRange(1, 1_000_000), default=60, show_default=True,
                     help="Time of a job; one that is not done by then goes on in another."),
        click.option("--slurm", multiple=True, metavar="KEY=VALUE",
                     help="Anything else sbatch knows: account=..., qos=..., constraint=...; repeatable."),
        click.option("--logs", metavar="DIR", default="jobs", show_default=True, help="Where the jobs' output goes."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def parameters_of(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options as submitit's executor calls them."""
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": options["nodes"],
        "tasks_per_node": options["processes"],
        "timeout_min": options["minutes"],
        "slurm_partition": options["partition"],
        "cpus_per_task": options["cpus"],
        "mem_gb": options["memory"],
    }
    gpus = options["gpus"] if options["gpus"] is not None else options["processes"]
    if options["cluster"] != "local" or options["gpus"]:
        parameters["gpus_per_node"] = gpus
    more = {}
    for text in options["slurm"]:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError([f"--slurm {text}: expected KEY=VALUE, such as account=vision"])
        more[key] = value
    if more:
        parameters["slurm_additional_parameters"] = more
    return {key: value for key, value in parameters.items() if value is not None}


class AfterDashes(click.Command):
    """A command whose words after `--` are another command's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["rkd.words"] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


@click.command("submit", cls=AfterDashes, short_help="Send a run to SLURM.",
               epilog="rkd submit --partition gpu --processes 8 -- run --loss rslad --data-dir DATA")  # fmt: skip
@job_options
@click.option("--wait", is_flag=True, help="Wait for the job to end.")
@json_option
@verbosity_options
@pass_app
@click.pass_context
def submit(context: click.Context, app: App, wait: bool, **options: Any) -> None:
    """Send `rkd run ...`, written after `--`, to SLURM by submitit.

    The command is checked first. A job whose time is over is sent again and goes on at its last checkpoint. All nodes
    must see the same folders.
    """
    words = context.meta.get("rkd.words", [])
    if not words or words[0] != "run":
        raise RkdError("what is to be submitted? Type it after --, as in: rkd submit --minutes 600 -- run --loss rslad")
    app.load_torch()
    from rkd.workflow.sweeps.jobs import Job
    from rkd.workflow.sweeps.jobs import submit as send

    path, words = planned(words, app)
    job = send([Job(tuple(words), str(path))], Path(options["logs"]), options["cluster"],
               parameters_of(options, path.name))[0]  # fmt: skip
    if app.json:
        app.terminal.json({"job": job.job_id, "run": str(path), "log": str(job.paths.stdout)})
    else:
        app.terminal.result(f"job {job.job_id}: {path}")
        app.terminal.message(f"log: {job.paths.stdout}")
    if wait:
        wait_for([job])
        if error := job.exception():
            raise RkdError(f"the job failed; see {job.paths.stderr}: {str(error).strip().splitlines()[-1]}")


def planned(words: list[str], app: App) -> tuple[Path, list[str]]:
    """The folder of the run that `run ...` would make, and the words with its name: the same whenever it starts."""
    from rkd.workflow.folders import find_run, new_run_folder
    from rkd.workflow.resolve import resolve

    from ..settings import run_table
    from .run import run

    parsed = run.make_context("rkd run", list(words[1:]))
    given = dict(parsed.params)
    if given["resume"] is not None:
        return find_run(given["resume"], given["out"]), words
    catalog = app.catalog()
    others = ("recipe", "name", "out", "resume", "report", "dry_run", "fast_dev_run", "accept_changes", "sets")
    own = {key: given.pop(key) for key in others}
    table = run_table(own["recipe"], given, own["sets"], catalog)
    resolve(table, catalog)
    path = new_run_folder(table, own["name"], own["out"])
    return path, words if own["name"] else [words[0], f"--name={path.name}", *words[1:]]


def wait_for(jobs: list[Any]) -> None:
    """Until all have ended."""
    while not all(job.done() for job in jobs):
        time.sleep(2)

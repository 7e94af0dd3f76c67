"""`rkd sweep`: a matrix of runs, carried out as far as it is not done, and compared."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rkd.core.errors import ConfigError, RkdError
from rkd.storage.text import command

from ..options import App, json_option, pass_app, plugin_option, verbosity_options
from ..signals import Interrupts
from .submit import job_options, parameters_of, wait_for

if TYPE_CHECKING:
    from rkd.workflow.sweeps.sweep import Point, Sweep


@click.command("sweep", short_help="Carry out a matrix of runs and compare them.")
@click.argument("words", metavar="[RECIPE | SWEEP.toml | SWEEP] [KEY=VALUES]...", nargs=-1)
@click.option("--grid", multiple=True, metavar="KEY=A,B,...", help="An axis: an option of `rkd run` (loss, seed, "
              "student, ...) or a setting; 0..4 is a range.")  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="What all runs have in common: an option of "
              "`rkd run` without its dashes, or a setting.")  # fmt: skip
@click.option("--name", help="Name of the sweep's folder; made of its axes unless given.")
@click.option("--out", metavar="DIR", default="runs", show_default=True, help="Where the sweep's folder goes.")
@click.option("--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Runs at a time on this "
              "machine; GPUs are dealt out among them.")  # fmt: skip
@click.option("--submit", is_flag=True, help="Send the runs to SLURM instead.")
@click.option("--wait/--no-wait", default=True, help="With --submit: wait for the jobs, and compare.")
@click.option("--dry-run", is_flag=True, help="Show the runs and where each stands.")
@click.option("--report/--no-report", default=True, help="Write each run's report.html.")
@job_options
@json_option
@verbosity_options
@plugin_option
@pass_app
def sweep(app: App, words: tuple[str, ...], grid: tuple[str, ...], sets: tuple[str, ...], name: str | None, out: str,
          jobs: int, submit: bool, wait: bool, dry_run: bool, report: bool, **options: Any) -> None:  # fmt: skip
    """Carry out all combinations of the axes, each as `rkd run`, and show them in one table: mean and standard
    deviation over seeds.

    What is finished is skipped and what was begun is continued: after whatever killed it, type the same again, or
    `rkd sweep FOLDER`. A run that fails does not stop the others.
    """
    app.load_torch()
    from rkd.workflow.sweeps.jobs import LocalRuns
    from rkd.workflow.sweeps.sweep import begin, state_of

    matrix, folder = _read(words, grid, sets, name, out)
    points = matrix.points()
    plugins = app.plugin_words
    more = [*plugins, *([] if report else ["--no-report"])]
    states = {point.name: state_of(folder / point.name) for point in points}
    unfinished = [point for point in points if states[point.name] != "finished"]
    _check(matrix, [point for point in points if states[point.name] == "new"], folder, app)
    if dry_run:
        for point in points:
            app.terminal.result(f"{states[point.name]:9} {command(*matrix.words(point, folder, more))}")
        return
    begin(matrix, folder)
    app.terminal.message(f"{folder}: {len(points)} runs, {len(points) - len(unfinished)} of them finished")
    if submit:
        failed = _send(matrix, unfinished, folder, options, more, app, wait)
        if not wait:
            return
    else:
        interrupts = Interrupts()
        tell = app.terminal.message
        runs = LocalRuns(matrix, folder, more, jobs, options["processes"], tell)
        with interrupts.noted():
            try:
                failed = runs.carry_out(unfinished)
            except KeyboardInterrupt:
                tell("the runs finish their step and save", always=True)
                # Ctrl-C reaches the runs by itself, SIGTERM was sent to this process alone.
                runs.stop(terminate=interrupts.signal == signal.SIGTERM)
                raise
    _compared([folder / point.name for point in points if point.name not in failed], app)
    if failed:
        for run, reason in failed.items():
            app.terminal.warning(f"{run} failed: {reason}")
        again = command("sweep", folder, *plugins)
        raise RkdError(
            f"{len(failed)} of {len(points)} runs failed; `{again}` tries them again, their output is in "
            f"{folder}/NAME.log"
        )


def _read(
    words: Sequence[str], grid: Sequence[str], sets: Sequence[str], name: str | None, out: str
) -> tuple[Sweep, Path]:
    """The sweep that the words and options mean, and its folder. Raises RkdError."""
    from rkd.registry.recipes import read_recipe
    from rkd.workflow.sweeps.sweep import Sweep, axes_of, is_sweep_file, read_sweep, safe_name

    axes = axes_of([*grid, *(word for word in words if "=" in word and not Path(word).exists())])
    plain = [word for word in words if "=" not in word or Path(word).exists()]
    if len(plain) > 1:
        raise RkdError(f"one recipe or sweep, please, not {len(plain)}: {' '.join(plain)}")
    common = axes_of(sets, "--set") if sets else {}
    settings = {key: ",".join(values) for key, values in common.items()}
    start = Path(plain[0]) if plain else None
    if start is not None and (start / "sweep.toml").is_file():
        if axes or settings or name:
            raise RkdError(f"{start} is a sweep that has begun: its axes and settings are in {start}/sweep.toml")
        return read_sweep(start / "sweep.toml"), start
    matrix = Sweep({})
    if start is not None:
        if is_sweep_file(start):
            matrix = read_sweep(start)
        else:
            matrix.recipe = str(start.resolve()) if start.is_file() else str(start)
    matrix.axes |= axes
    matrix.settings |= settings
    if start is not None and matrix.recipe and not matrix.axes:
        if start.is_dir():
            raise RkdError(f"{start} is no folder of a sweep: it has no sweep.toml")
        read_recipe(str(start))  # a misspelt one is what has to be told, not that axes are missing
    matrix.points()
    return matrix, Path(out) / safe_name(name or matrix.default_name())


def _check(sweep: Sweep, points: Sequence[Point], folder: Path, app: App) -> None:
    """Raise ConfigError for misspelt names and wrong options of any run, before the first begins: each once, with the
    runs that it stops."""
    from rkd.workflow.resolve import check_names

    from ..settings import run_table
    from .run import run

    stops: dict[str, list[str]] = {}
    catalog = app.catalog() if points else None
    app.terminal.doing(f"{folder}: checking the settings of {len(points)} runs")
    for point in points:
        try:
            words = sweep.words(point, folder)[1:]
            plugins = list(app.files)
            options = run.make_context("rkd run", words, parent=click.get_current_context()).params
            assert catalog is not None
            assert app.files == plugins, "what a sweep's file says names no code"
            check_names(run_table(options.pop("recipe"), options, options.pop("sets"), catalog), catalog)
        except ConfigError as error:
            for problem in error.problems:
                stops.setdefault(problem, []).append(point.name)
        except (RkdError, click.UsageError) as error:
            stops.setdefault(error.message if isinstance(error, click.UsageError) else str(error), []).append(
                point.name
            )
    app.terminal.still()
    if stops:
        raise ConfigError([
            problem + ("" if len(names) == len(points) else f" (in {', '.join(names[:3])}{_more(len(names) - 3)})")
            for problem, names in stops.items()
        ])  # fmt: skip


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _send(
    sweep: Sweep, points: Sequence[Point], folder: Path, options: Mapping[str, Any], plugins: Sequence[str], app: App,
    wait: bool,
) -> dict[str, str]:  # fmt: skip
    """Submit the runs as jobs. Returns those that failed with the reason, as far as it waits for them."""
    from rkd.workflow.sweeps.jobs import Job
    from rkd.workflow.sweeps.jobs import submit as send

    if not points:
        return {}
    jobs = [Job(tuple(sweep.words(point, folder, plugins)), str(folder / point.name)) for point in points]
    sent = send(jobs, Path(options["logs"]), options["cluster"], parameters_of(options, folder.name))
    for point, job in zip(points, sent, strict=True):
        app.terminal.message(f"job {job.job_id}: {point.name}")
    if not wait:
        app.terminal.message(f"`{command('sweep', folder, *plugins)}` compares them when they are done")
        return {}
    wait_for(sent)
    return {point.name: f"see {job.paths.stderr}" for point, job in zip(points, sent, strict=True) if job.exception()}


def _compared(paths: Sequence[Path], app: App) -> None:
    from rkd.workflow.folders import RunFolder

    from .compare import show_comparison

    if not paths:
        return
    with app.terminal.guarded():
        from rkd import report

        comparison = report.compare([RunFolder.open(path) for path in paths])
    show_comparison(comparison, app, {})
    for warning in comparison.warnings:
        app.terminal.warning(warning)

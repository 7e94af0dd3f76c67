"""`rkd sweep`: a matrix of runs, carried out as far as it is not done, and compared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from rkd.core.errors import ConfigError, RkdError

from ..interrupts import Interrupts, Terminated
from ..shared import RUNS, App, json_option, pass_app, plugin_option, verbosity_options
from .submit import job_options, parameters_of, wait_for

if TYPE_CHECKING:
    from rkd.workflow.sweep import Point, Sweep


@click.command("sweep", short_help="Carry out a matrix of runs and compare them.")
@click.argument("words", metavar="[RECIPE | SWEEP.toml | SWEEP] [KEY=VALUES]...", nargs=-1)
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=A,B,...",
    help="An axis: an option of `rkd run` (loss, seed, student, ...) or a setting; 0..4 is a range.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="What all runs have in common: an option of `rkd run` without its dashes, or a setting.",
)
@click.option("--name", help="Name of the sweep's folder; made of its axes unless given.")
@click.option("--out", metavar="DIR", default=RUNS, show_default=True, help="Where the sweep's folder goes.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at a time on this machine; GPUs are dealt out among them.",
)
@click.option("--submit", is_flag=True, help="Send the runs to SLURM instead.")
@click.option("--wait/--no-wait", default=True, help="With --submit: wait for the jobs, and compare.")
@click.option("--dry-run", is_flag=True, help="Show the runs and where each stands.")
@job_options
@json_option
@verbosity_options
@plugin_option
@pass_app
def sweep(app: App, words: tuple[str, ...], grid: tuple[str, ...], sets: tuple[str, ...], name: str | None, out: str,
          jobs: int, submit: bool, wait: bool, dry_run: bool, **options: Any) -> None:  # fmt: skip
    """Carry out all combinations of the axes, each as `rkd run`, and show them in one table: mean and standard
    deviation over seeds.

    What is finished is skipped and what was begun is continued: after whatever killed it, type the same again, or
    `rkd sweep FOLDER`. A run that fails does not stop the others.
    """
    from rkd.workflow.sweep import begin, state_of

    found, folder = _asked(words, grid, sets, name, out)
    points = found.points()
    states = {point.name: state_of(folder / point.name) for point in points}
    open_ones = [point for point in points if states[point.name] != "finished"]
    _check(found, [point for point in points if states[point.name] == "new"], folder, app)
    if dry_run:
        for point in points:
            files = [word for file in app.files for word in ("--plugin", file)]
            app.terminal.result(f"{states[point.name]:9} rkd {' '.join(found.words(point, folder) + files)}")
        return
    begin(found, folder)
    app.terminal.message(f"{folder}: {len(points)} runs, {len(points) - len(open_ones)} of them finished")
    if submit:
        failed = _send(found, open_ones, folder, options, app, wait)
        if not wait:
            return
    else:
        failed = _Here(found, folder, app, jobs, options["processes"]).carry_out(open_ones)
    _compared([folder / point.name for point in points if point.name not in failed], app)
    if failed:
        for which, why in failed.items():
            app.terminal.warning(f"{which} failed: {why}")
        raise RkdError(
            f"{len(failed)} of {len(points)} runs failed; `rkd sweep {folder}` tries them again, their output is in "
            f"{folder}/NAME.log"
        )


def _asked(words: Sequence[str], grid: Sequence[str], sets: Sequence[str], name: str | None,
           out: str) -> tuple[Sweep, Path]:  # fmt: skip
    from rkd.storage.runfolder import safe_name
    from rkd.workflow.sweep import Sweep, axes_of, read_sweep

    axes = axes_of([*grid, *(word for word in words if "=" in word and not Path(word).exists())])
    plain = [word for word in words if "=" not in word or Path(word).exists()]
    if len(plain) > 1:
        raise RkdError(f"one recipe or sweep, please, not {len(plain)}: {' '.join(plain)}")
    common = axes_of(sets) if sets else {}
    settings = {key: ",".join(values) for key, values in common.items()}
    start = Path(plain[0]) if plain else None
    if start is not None and (start / "sweep.toml").is_file():
        if axes or settings or name:
            raise RkdError(f"{start} is a sweep that has begun: its axes and settings are in {start}/sweep.toml")
        return read_sweep(start / "sweep.toml"), start
    found = Sweep({})
    if start is not None:
        if start.suffix == ".toml" and start.is_file() and _is_sweep(start):
            found = read_sweep(start)
        else:
            found.recipe = str(start.resolve()) if start.is_file() else str(start)
    found.axes |= axes
    found.settings |= settings
    if start is not None and found.recipe and not found.axes:
        from rkd.registry.config import read_recipe

        if start.is_dir():
            raise RkdError(f"{start} is no folder of a sweep: it has no sweep.toml")
        read_recipe(str(start))  # a misspelt one is what has to be told, not that axes are missing
    found.points()
    return found, Path(out) / safe_name(name or found.default_name())


def _check(sweep: Sweep, points: Sequence[Point], folder: Path, app: App) -> None:
    """Raise ConfigError for misspelt names and wrong options of any run, before the first begins: each once, with the
    runs that it stops."""
    from rkd.workflow.resolve import check_names

    from ..settings import run_table
    from .run import run

    stops: dict[str, list[str]] = {}
    catalog = app.catalog() if points else None
    for point in points:
        try:
            words = sweep.words(point, folder)[1:]
            options = run.make_context("rkd run", words, parent=click.get_current_context()).params
            assert catalog is not None
            check_names(run_table(options.pop("recipe"), options, options.pop("sets"), catalog), catalog)
        except ConfigError as error:
            for problem in error.problems:
                stops.setdefault(problem, []).append(point.name)
        except (RkdError, click.UsageError) as error:
            stops.setdefault(error.message if isinstance(error, click.UsageError) else str(error), []).append(
                point.name
            )
    if stops:
        all_of_them = len(points)
        raise ConfigError([
            what + ("" if len(names) == all_of_them else f" (in {', '.join(names[:3])}{_more(len(names) - 3)})")
            for what, names in stops.items()
        ])  # fmt: skip


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _is_sweep(path: Path) -> bool:
    import tomllib

    try:
        return "grid" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # told when it is read as a recipe


class _Here:
    """The runs on this machine, each a process of its own with its output in a file."""

    def __init__(self, sweep: Sweep, folder: Path, app: App, jobs: int, processes: int) -> None:
        self.sweep, self.folder, self.app, self.jobs, self.processes = sweep, folder, app, jobs, processes
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.lock = threading.Lock()
        self.stopped = False
        self.slots = list(range(jobs))
        self.gpus = _gpus() if jobs > 1 else []

    def carry_out(self, points: Sequence[Point]) -> dict[str, str]:
        """Names of runs that failed, and why. Raises KeyboardInterrupt when it has stopped those that were running."""
        with Interrupts().noted(), ThreadPoolExecutor(self.jobs) as pool:
            work = {point.name: pool.submit(self._one, point) for point in points}
            try:
                while any(not future.done() for future in work.values()):
                    time.sleep(0.2)
            except KeyboardInterrupt as error:
                self._stop(error)
                raise
        return {name: why for name, future in work.items() if (why := future.result()) is not None}

    def _one(self, point: Point) -> str | None:
        log = self.folder / f"{point.name}.log"
        with open(log, "ab") as output:
            if not self._alone(output, point):
                return "stopped"
            return self._started(point, log, output)

    def _started(self, point: Point, log: Path, output: BinaryIO) -> str | None:
        from rkd.workflow.sweep import state_of

        if state_of(self.folder / point.name) == "finished":  # by whom this one has waited for
            return None
        words = self.sweep.words(point, self.folder)
        words += [word for file in self.app.files for word in ("--plugin", file)]
        start = [sys.executable, "-m"]
        if self.processes > 1:
            start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        began = time.monotonic()
        with self.lock:
            if self.stopped:
                return "stopped"
            slot = self.slots.pop()
            process = subprocess.Popen([*start, "rkd", *words], stdout=output, stderr=output, env=self._env(slot))
            self.running[point.name] = process
        code = process.wait()
        with self.lock:
            del self.running[point.name]
            self.slots.append(slot)
        if code:
            return _last_error(log) or f"exit code {code}"
        from ..terminal import duration

        self.app.terminal.message(f"{point.name}: done in {duration(time.monotonic() - began)}")
        return None

    def _alone(self, output: BinaryIO, point: Point) -> bool:
        """Wait until no other process writes this log: the run of a sweep that was killed may outlive it. A lock on an
        open file is the child's as well, and ends with the last of them. False: stopped meanwhile."""
        try:
            import fcntl
        except ImportError:
            return True  # not on Windows: the run itself refuses to be carried out twice
        told = False
        while not self.stopped:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if not told:
                    self.app.terminal.message(f"{point.name}: waiting for another process that is at it")
                told = True
                time.sleep(0.5)
        return False

    def _env(self, slot: int) -> Mapping[str, str]:
        environment = dict(os.environ)
        if self.jobs > 1:
            share = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(share))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return environment

    def _stop(self, error: KeyboardInterrupt) -> None:
        with self.lock:
            self.stopped = True
            running = list(self.running.values())
        self.app.terminal.message("the runs finish their step and save", always=True)
        # Ctrl-C reaches the runs by itself, SIGTERM was sent to this process alone.
        if isinstance(error, Terminated):
            for process in running:
                process.terminate()
        for process in running:
            process.wait()


def _gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


def _send(sweep: Sweep, points: Sequence[Point], folder: Path, options: Mapping[str, Any], app: App,
          wait: bool) -> dict[str, str]:  # fmt: skip
    from rkd.workflow.jobs import Job
    from rkd.workflow.jobs import submit as send

    if not points:
        return {}
    files = [word for file in app.files for word in ("--plugin", file)]
    jobs = [Job((*sweep.words(point, folder), *files), str(folder / point.name)) for point in points]
    sent = send(jobs, Path(options["logs"]), options["cluster"], parameters_of(options, folder.name))
    for point, job in zip(points, sent, strict=True):
        app.terminal.message(f"job {job.job_id}: {point.name}")
    if not wait:
        app.terminal.message(f"`rkd sweep {folder}` compares them when they are done")
        return {}
    wait_for(sent)
    return {point.name: f"see {job.paths.stderr}" for point, job in zip(points, sent, strict=True) if job.exception()}


def _compared(paths: Sequence[Path], app: App) -> None:
    from .compare import show_comparison

    if paths:
        show_comparison(paths, app)

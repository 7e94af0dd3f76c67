"""Sweep files, folders of sweeps, and configurations that were changed under a run."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import click
import tomli_w

from rkd.cli import cli
from rkd.cli.commands.run import run, run_table
from rkd.cli.options import App
from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder
from rkd.storage.serialize import save_state
from rkd.workflow.resume import check_config, digest
from rkd.workflow.sweeps.jobs import LocalRuns
from rkd.workflow.sweeps.sweep import Sweep, begin, is_sweep_file, read_sweep

from .run_folders import CONFIG, make_run
from .strange import catalog, mutated, scribbled, special

OPTIONS = (
    "--plugin=evil.py",
    "--plugin",
    "evil.py",
    "--",
    "-q",
    "--out=../outside",
    "--resume=../outside",
    "--name=../../x",
    "--set=loss.name=ce",
    "../outside/secret.toml",
    "/dev/zero",
)
"""Values that would be options, or files, of somebody who may not give any."""

HUGE = (
    "[grid]\nseed = '0..9999'\nloss.T = '0..9999'\n",
    "[grid]\nseed = '" + ",".join(["0..9999"] * 2000) + "'\n",
    "[grid]\nseed = '0.." + "9" * 5000 + "'\n",
    "[grid]\n" + "".join(f"a{n} = [1, 2]\n" for n in range(40)),
    "[grid]\nseed = " + "[" * 20_000,
    "grid." + "a." * 9000 + "b = 1\n",
    "[grid]\nseed = [" + "9" * 400 + "]\n",
    "[grid]\nloss = ['" + "x" * 5000 + "']\n",
    "#" + "x" * (5 << 20),
)


def sweep_file(rng: random.Random, folder: Path) -> None:
    """A .toml file with axes, read, and the words of its runs, as `rkd run` reads them."""
    (folder / "evil.py").write_text("open('../outside/pwned', 'w')\n")
    file = folder / "it.toml"
    base: dict[str, Any] = {
        "recipe": "digits-rslad",
        "set": {"epochs": 1, "loss": {"T": 2.0}},
        "grid": {"seed": "0..2", "attack": {"eps": ["4/255", 0.1]}},
    }
    kind = rng.random()
    if kind < 0.2:
        file.write_bytes(scribbled(rng, tomli_w.dumps(base).encode()))
    elif kind < 0.3:
        file.write_text(rng.choice(HUGE))
    elif kind < 0.34:
        special(rng, file)
    else:
        if kind < 0.7:
            place, key = rng.choice((base, base["set"], base["grid"])), rng.choice(("recipe", "plugin", "with", "loss"))
            place[key] = rng.choice(OPTIONS) if place is not base["grid"] else [rng.choice(OPTIONS)]
        file.write_text(tomli_w.dumps(mutated(rng, base)), encoding="utf-8", errors="replace")
    is_sweep_file(file)
    sweep = read_sweep(file)
    out = folder / "runs"
    for point in sweep.points()[:2]:
        app = App()
        try:
            words = sweep.words(point, out)[1:]
            options = run.make_context("rkd run", words, parent=click.Context(cli, obj=app)).params
        except click.UsageError as error:
            raise RkdError(error.message) from error
        if app.files or (options["out"], options["name"], options["resume"]) != (str(out), point.name, None):
            raise AssertionError(f"what the file says became an option: {words}")
        run_table(options.pop("recipe"), options, options.pop("sets"), catalog())


class _Harmless(LocalRuns):
    """Runs that do nothing but write their log."""

    def _start(self, point: Any, output: Any, slot: int) -> subprocess.Popen[bytes]:
        self.sweep.words(point, self.folder, self.words)
        return subprocess.Popen(["echo", "it ran"], stdout=output, stderr=output)


def sweep_folder(rng: random.Random, folder: Path) -> None:
    """The folder of a sweep that has begun, with links and FIFOs in it, gone on with."""
    runs = folder / "sweep"
    sweep = Sweep({"seed": ["0", "1"]}, "digits-rslad")
    names = [point.name for point in sweep.points()]
    if rng.random() < 0.9:
        begin(sweep, runs)
        if rng.random() < 0.5:
            make_run(rng, runs / names[0])
        for name in rng.sample([*names, *(f"{name}.log" for name in names), "sweep.toml", ".sweep.toml.tmp"], 2):
            if not (runs / name).is_dir():
                special(rng, runs / name)
    else:
        special(rng, runs)
    if (runs / "sweep.toml").exists():
        sweep = read_sweep(runs / "sweep.toml")
    begin(sweep, runs)
    points = sweep.points()[:4]
    failed = _Harmless(sweep, runs, [], 1, 1, lambda text: None).carry_out(points)
    if failed:
        raise RkdError("; ".join(failed.values()))


def changed_run(rng: random.Random, folder: Path) -> None:
    """A run whose config.toml, checkpoint or manifest somebody has changed, before it goes on."""
    run_folder = make_run(rng, folder / "run")
    text = tomli_w.dumps(mutated(rng, CONFIG) if rng.random() < 0.5 else CONFIG)
    state: dict[str, Any] = {"epoch": 1, "done": 0, "batches": 6, "config": text, "replaces": None}
    if rng.random() < 0.3:
        ordinary = run_folder.config.is_file() and not run_folder.config.is_symlink()
        state["replaces"] = digest(run_folder.config.read_text(errors="replace")) if ordinary else 3
    if rng.random() < 0.3:
        state = mutated(rng, state)
    if not run_folder.last.is_symlink() and run_folder.checkpoints.is_dir():
        save_state(run_folder.last, {str(key): value for key, value in state.items()})
    if rng.random() < 0.2 and not run_folder.checkpoints.is_symlink():
        special(rng, run_folder.checkpoints / rng.choice(("last.safetensors", "config.toml")))
    check_config(RunFolder.open(run_folder.path), accept=rng.random() < 0.2)

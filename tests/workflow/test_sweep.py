"""Matrices of runs: axes, names, words, files; jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rkd.cli.commands.submit import parameters_of
from rkd.core.errors import ConfigError, RkdError
from rkd.workflow.jobs import Job, _let_it_save, executor, submit
from rkd.workflow.sweep import Sweep, axes_of, begin, read_sweep, state_of


def test_axes() -> None:
    assert axes_of(["loss=ard,rslad seed=0..3"]) == {"loss": ["ard", "rslad"], "seed": ["0", "1", "2", "3"]}
    assert axes_of(["loss.beta=ramp(0, 6, until=0.5),6", "x=[1, 2],[3]"]) == {
        "loss.beta": ["ramp(0, 6, until=0.5)", "6"], "x": ["[1, 2]", "[3]"],
    }  # fmt: skip
    for wrong in ("loss", "=3", "loss=", "seed=1 seed=2", "seed=5..1"):
        with pytest.raises(ConfigError):
            axes_of([wrong])
    for half in ("seed=0..", "seed=..4"):
        with pytest.raises(ConfigError, match=r"seed=.*two ends"):
            axes_of([half])


def test_points_are_the_product() -> None:
    points = Sweep(axes_of(["loss=ard,rslad", "attack.eps=4/255,8/255"])).points()
    assert [dict(p.values) for p in points] == [
        {"loss": loss, "attack.eps": eps} for loss in ("ard", "rslad") for eps in ("4/255", "8/255")
    ]
    assert points[0].name == "loss=ard_eps=4-255" and len({p.name for p in points}) == 4
    with pytest.raises(ConfigError, match="twice"):
        Sweep({"lr": ["0.1", "0.1"]}).points()
    with pytest.raises(ConfigError, match="axis"):
        Sweep({}).points()


def test_words(tmp_path: Path) -> None:
    sweep = Sweep({"loss": ["ard"], "attack.eps": ["8/255"]}, "digits-rslad", {"epochs": "3", "loss.T": "4"})
    (point,) = sweep.points()
    assert sweep.words(point, tmp_path) == [
        "run", "digits-rslad", "--epochs", "3", "--set", "loss.T=4", "--loss", "ard", "--set", "attack.eps=8/255",
        "--name", point.name, "--out", str(tmp_path),
    ]  # fmt: skip
    recipes = Sweep({"recipe": ["a", "b"]}, None, {"seed": "1"})
    assert [recipes.words(p, tmp_path)[1] for p in recipes.points()] == ["a", "b"]
    run = tmp_path / point.name
    run.mkdir()
    (run / "config.toml").write_text("")
    assert state_of(run) == "begun" and sweep.words(point, tmp_path) == ["run", "--resume", str(run)]


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_text('recipe = "digits-rslad"\n[set]\nepochs = 3\nloss.T = 2.5\nstudent.conversions.aux-bn.views = '
                    '["adv"]\n[grid]\nseed = "0..2"\nattack.eps = ["4/255", 0.1]\n')  # fmt: skip
    sweep = read_sweep(file)
    assert sweep.axes == {"seed": ["0", "1", "2"], "attack.eps": ["4/255", "0.1"]}
    assert sweep.settings == {"epochs": "3", "loss.T": "2.5", "student.conversions.aux-bn.views": '["adv"]'}
    folder = tmp_path / "runs"
    begin(sweep, folder)
    again = read_sweep(folder / "sweep.toml")
    assert again == sweep and again.default_name() == sweep.default_name()
    begin(sweep, folder)
    with pytest.raises(RkdError, match="another sweep"):
        begin(Sweep({"seed": ["7"]}), folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(RkdError, match="no sweep"):
        begin(sweep, tmp_path / "other")
    file.write_text("[grids]\nseed = 1\n")
    with pytest.raises(ConfigError, match="grids"):
        read_sweep(file)


def test_a_job_whose_time_is_over_is_sent_again(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    job = Job(("run", "--name", "it"), str(tmp_path / "it"))
    again = job.checkpoint()
    assert again.function == job


def test_a_job_that_is_taken_away_lets_its_run_save(tmp_path: Path) -> None:
    mark = tmp_path / "saved"
    code = (
        f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open({str(mark)!r}, 'w'), sys.exit(0)));"
    )
    code += " print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    _let_it_save(process)
    process.stdout.close()
    assert process.returncode == 0 and mark.exists()


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RkdError, match="no SLURM"):
        executor(tmp_path / "logs", None, {})
    with pytest.raises(RkdError, match="parameters"):
        executor(tmp_path / "logs", "local", {"colour": "red"})


def test_what_slurm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", "echo Submitted batch job 12"), ("srun", ""), ("scancel", ""), ("sacct", "")):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    given = {"cluster": None, "nodes": 2, "processes": 8, "minutes": 600, "partition": "gpu", "cpus": 4, "memory": None,
             "gpus": None, "slurm": ("account=vision",)}  # fmt: skip
    job = submit([Job(("run",), "it")], tmp_path / "logs", None, parameters_of(given, "it"))[0]
    assert job.job_id == "12"
    script = next((tmp_path / "logs").glob("*.sh"))
    asked = set(script.read_text().splitlines())
    for line in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=4", "time=600", "partition=gpu",
                 "account=vision", "job-name=it"):  # fmt: skip
        assert f"#SBATCH --{line}" in asked, line

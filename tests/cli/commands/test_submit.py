"""`rkd submit`: a run as a job, checked before it is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rkd.cli.commands.submit import parameters_of
from rkd.workflow.sweeps.jobs import Job, submit

from ..conftest import TINY, invoke


@pytest.mark.slow
def test_a_job_of_two_processes(empty_folder: Path) -> None:
    pytest.importorskip("submitit")
    job = ("submit", "--cluster", "local", "--processes", "2", "--minutes", "3", "--wait", "--json")
    said = invoke(*job, "--", "run", "--loss", "pgd-at", *TINY)
    assert said.exit_code == 0, said.stderr
    run = Path(said.json["run"])
    assert json.loads((run / "manifest.json").read_text())["hardware"]["processes"] == 2
    assert json.loads((run / "evaluation.json").read_text())["student"]["samples"] == 50
    assert not said.stderr.count("error")


def test_what_is_submitted_is_checked_first() -> None:
    assert "after --" in invoke("submit").stderr
    said = invoke("submit", "--cluster", "local", "--", "run", "--loss", "rslaad")
    assert said.exit_code == 2 and "rslad" in said.stderr
    assert not Path("jobs").exists()


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

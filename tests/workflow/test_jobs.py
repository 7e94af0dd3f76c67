"""Runs as jobs of a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rkd.cli.commands.submit import parameters_of
from rkd.core.errors import RkdError
from rkd.workflow.jobs import Job, _let_it_save, executor, submit


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

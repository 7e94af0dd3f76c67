"""Runs as jobs of a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.workflow.jobs import Job, _let_it_save, executor


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

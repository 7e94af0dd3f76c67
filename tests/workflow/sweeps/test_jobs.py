"""Runs as jobs of a cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rkd.core.errors import RkdError
from rkd.workflow.sweeps.jobs import Job, LocalRuns, _gpus, _let_it_save, executor
from rkd.workflow.sweeps.sweep import Sweep


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


def local_runs(
    code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, told: list[str], jobs: int = 2
) -> tuple[LocalRuns, Sweep]:
    """Runs of two seeds that carry out `code`, with the name of the run as its argument."""
    sweep = Sweep({"seed": ["0", "1"]})
    monkeypatch.setattr(
        LocalRuns, "_start",
        lambda self, point, output, slot: subprocess.Popen(
            [sys.executable, "-c", code, point.name], stdout=output, stderr=output
        ),
    )  # fmt: skip
    return LocalRuns(sweep, folder, (), jobs, 1, told.append), sweep


def test_a_run_that_fails_on_this_machine_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; fails = sys.argv[1] == 'seed=1'; print('error: no' if fails else 'fine'); sys.exit(2 * fails)"
    told: list[str] = []
    runs, sweep = local_runs(code, tmp_path, monkeypatch, told)
    assert runs.carry_out(sweep.points()) == {"seed=1": "no"}
    assert [line.split(" in ")[0] for line in told] == ["seed=0: done"]
    assert (tmp_path / "seed=0.log").read_text() == "fine\n"


def test_a_sweep_that_is_stopped_ends_its_runs_and_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, sweep = local_runs("import time; time.sleep(60)", tmp_path, monkeypatch, [], jobs=1)
    failed: dict[str, str] = {}
    thread = threading.Thread(target=lambda: failed.update(runs.carry_out(sweep.points())))
    thread.start()
    while not runs.running:
        time.sleep(0.01)
    runs.stop(terminate=True)
    thread.join(60)
    assert failed == {"seed=0": "exit code -15", "seed=1": "stopped"}


def test_the_cards_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the user left visible, else all there are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert _gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _gpus() == []

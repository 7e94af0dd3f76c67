"""`rkd run` in two real processes under torchrun: one that dies, restarts, and going on with another number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import TINY, invoke

DIES = '''
from dataclasses import dataclass
from rkd.core.errors import RkdError
from rkd.core.hooks import hookimpl

@dataclass
class Dies:
    """Ends the last process after the first epoch, once."""

    @hookimpl
    def rkd_epoch_end(self, run, metrics):
        if run.ranks.rank == 1 and run.ranks.attempt == 0 and run.epoch == 2:
            raise RkdError("the disk of the last process is full")

@hookimpl
def rkd_extensions():
    return {"dies": Dies}
'''

RUN = ("run", "--loss", "trades", "--scheduler", "anl", *TINY, "--epochs", "3", "--out", "runs", "--json")


def torchrun(*words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command = [sys.executable, *start, "-m", "rkd", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_process_that_dies_is_restarted_and_the_run_continued(empty_folder: Path) -> None:
    Path("dies.py").write_text(DIES)
    done = torchrun(*RUN, "--plugin", "dies.py", "--with", "dies", restarts=1)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the disk of the last process is full") == 1
    assert "unexpected" not in done.stderr
    assert done.stderr.count("continuing after epoch 1 of 3") == 1 or "continuing after epoch 2 of 3" in done.stderr
    (run,) = Path("runs").iterdir()
    assert json.loads(done.stdout)["run"] == str(run), "one process speaks, once"
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2]
    assert json.loads((run / "manifest.json").read_text())["hardware"]["processes"] == 2


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(empty_folder: Path) -> None:
    Path("dies.py").write_text(DIES)
    done = torchrun(*RUN, "--plugin", "dies.py", "--with", "dies", "--name", "it")
    assert done.returncode != 0
    assert done.stderr.count("the disk of the last process is full") == 1
    said = invoke("run", "--resume", "runs/it", "--plugin", "dies.py", "--json")
    assert said.exit_code == 0, said.stderr
    assert said.json["epochs"] == 3
    assert len((Path("runs/it") / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_batch_must_be_large_enough_for_the_processes(empty_folder: Path) -> None:
    done = torchrun("run", "--loss", "pgd-at", "--batch-size", "3")
    assert done.returncode != 0
    assert done.stderr.count("too few for 2 processes") == 1
    assert not Path("runs").exists()

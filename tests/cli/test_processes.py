"""Several processes: the numbers of one, one voice, an end when one of them fails; under torchrun one that dies,
restarts, and going on with another number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rkd.cli import processes
from rkd.cli.processes import in_processes, is_one_of_several

from .conftest import TINY, Said, invoke


def rkd_in(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "rkd", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_numbers_are_those_of_one_process(rkd, finished: tuple[Path, Said]) -> None:
    run, _ = finished
    words = ("eval", run, "--attack", "pgd", "--attack", "fgsm", "--limit", "41", "--checks", "off", "--json")
    alone = rkd(*words).json
    done = rkd_in(*words, "--processes", "2")
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)
    for key in ("clean", "attacks", "worst_case", "samples"):
        assert key in alone
        assert without_time(together[key]) == without_time(alone[key]), key


def without_time(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_time(part) for name, part in value.items() if name != "seconds"}
    return value


@pytest.mark.slow
def test_a_mistake_is_told_once(finished: tuple[Path, Said], tmp_path: Path) -> None:
    done = rkd_in("eval", tmp_path / "nothing", "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "is not a run's folder" in done.stderr and not done.stdout


@pytest.mark.slow
def test_when_one_fails_the_others_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit(3)\ntime.sleep(60)"
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", script))
    assert in_processes(["x"], 3) == 3


@pytest.mark.slow
def test_each_knows_its_rank_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "tells.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS')\n"
        f"place = pathlib.Path({str(tmp_path)!r}) / os.environ['RANK']\n"
        "place.write_text(' '.join([os.environ[name] for name in names] + sys.argv[1:]))\n"
    )
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert in_processes(["eval", "it"], 2) == 0
    assert [(tmp_path / name).read_text() for name in "01"] == ["0 0 2 3 eval it", "1 1 2 3 eval it"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    in_processes([], 1)
    assert (tmp_path / "0").read_text() == "0 0 1 5", "what the user says stands"


@pytest.mark.slow
def test_a_termination_reaches_all(tmp_path: Path) -> None:
    waits = "import os, pathlib, time; pathlib.Path(os.environ['RANK']).touch(); time.sleep(60)"
    code = (
        "import sys\nfrom rkd.cli import processes\n"
        f"processes.COMMAND = (sys.executable, '-c', {waits!r})\n"
        "sys.exit(processes.in_processes([], 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (tmp_path / "0").exists() or not (tmp_path / "1").exists():
        assert parent.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said


def test_whether_it_is_one_of_several() -> None:
    assert (
        not is_one_of_several({})
        and not is_one_of_several({"WORLD_SIZE": "1"})
        and is_one_of_several({"WORLD_SIZE": "2"})
    )


# Under torchrun

DIES = '''
from dataclasses import dataclass
from rkd import RkdError, hookimpl

@dataclass
class Dies:
    """Ends the last process after the first epoch, once."""

    @hookimpl
    def rkd_epoch_end(self, run, metrics):
        if run.ranks.rank == 1 and run.backward.ranks.attempt == 0 and run.state.epoch == 2:
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
@pytest.mark.parametrize("rank", [0, 1])
def test_whoever_outlives_a_killed_process_says_that_another_died(rank: int, empty_folder: Path) -> None:
    """Really killed, as by a system that is out of memory; torchrun's agent then ends whoever is left, too."""
    killed = DIES.replace("run.rank == 1", f"run.rank == {rank}")
    killed = killed.replace('raise RkdError("the disk of the last process is full")', "os.kill(os.getpid(), 9)")
    Path("dies.py").write_text(f"import os\n{killed}")
    done = torchrun(*RUN, "--plugin", "dies.py", "--with", "dies", "--name", "it")
    assert done.returncode != 0
    assert "error: another process of this run has died" in done.stderr
    assert "continue with: rkd run --resume runs/it --plugin dies.py" in done.stderr
    assert "this is a bug" not in done.stderr


@pytest.mark.slow
def test_a_batch_must_be_large_enough_for_the_processes(empty_folder: Path) -> None:
    done = torchrun("run", "--loss", "pgd-at", "--batch-size", "3")
    assert done.returncode != 0
    assert done.stderr.count("too few for 2 processes") == 1
    assert not Path("runs").exists()

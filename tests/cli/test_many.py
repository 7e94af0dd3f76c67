"""`rkd eval --processes`: the same numbers from several processes, one voice, and an end when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rkd.cli import many
from rkd.cli.many import among_many, in_processes

from .conftest import Said


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


def test_when_one_fails_the_others_are_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import os, time\nif os.environ['RANK'] == '1': raise SystemExit(3)\ntime.sleep(60)\n")
    stand_in(monkeypatch, script)
    monkeypatch.setattr(many, "PATIENCE", 0.2)
    started = time.monotonic()
    assert in_processes(["x"], 3) == 3
    assert time.monotonic() - started < 30


def test_each_knows_its_place_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "tells.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'OMP_NUM_THREADS')\n"
        f"place = pathlib.Path({str(tmp_path)!r}) / os.environ['RANK']\n"
        "place.write_text(' '.join([os.environ[name] for name in names] + sys.argv[1:]))\n"
    )
    stand_in(monkeypatch, script)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert in_processes(["eval", "it"], 2) == 0
    said = [(tmp_path / name).read_text() for name in "01"]
    assert said == ["0 0 2 127.0.0.1 3 -m rkd eval it", "1 1 2 127.0.0.1 3 -m rkd eval it"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    in_processes([], 1)
    assert " 5 " in (tmp_path / "0").read_text(), "what the user says stands"


def stand_in(monkeypatch: pytest.MonkeyPatch, script: Path) -> None:
    """Let `script` run instead of rkd."""
    real = subprocess.Popen
    monkeypatch.setattr(
        many.subprocess, "Popen", lambda command, env: real([command[0], str(script), *command[1:]], env=env)
    )


@pytest.mark.slow
def test_a_termination_reaches_all(tmp_path: Path) -> None:
    waits = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys\nfrom rkd.cli import many\nreal = subprocess.Popen\n"
        f"many.subprocess.Popen = lambda command, env: real([sys.executable, '-c', {waits!r}])\n"
        "print('started', flush=True)\nsys.exit(many.in_processes([], 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    time.sleep(1.0)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=30) == 128 + signal.SIGTERM


def test_among_many() -> None:
    assert not among_many({}) and not among_many({"WORLD_SIZE": "1"}) and among_many({"WORLD_SIZE": "2"})

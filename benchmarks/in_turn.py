"""Processes that take turns, one step each, so that all meet the same state of the machine: what speed.py and
ablation.py measure with.

A job is a dict that a script's `--worker` understands; it has `images` (a file, beside which the cache lies) and
`threads`, and for another checkout `checkout` and `environment`: there benchmarks/speed.py does the job.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES = 1024


def answer(step: Callable[[], float], about_it: Callable[[], dict[str, Any]] = dict) -> None:
    """One step for each line on stdin, one line of JSON about it."""
    import torch

    for _ in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        about = {
            "seconds": seconds,
            "cpu": cpu,
            "loss": loss,
            "mib": after.ru_maxrss / 1024,
            "torch": torch.__version__,
            **about_it(),
        }
        print(json.dumps(about), flush=True)


def measure(row: str, jobs: dict[str, dict[str, Any]], rounds: int, out: Path, script: str, warm_up: int = 2) -> None:
    """Steps of all kinds in turn, into one file. `script`: whose `--worker` does the jobs."""
    path = out / f"{row}.json"
    if path.is_file() and json.loads(path.read_text())["jobs"] == jobs:
        return
    workers = {kind: start(job, script) for kind, job in jobs.items()}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in jobs}
    try:
        for number in range(rounds + warm_up):  # first the engine chooses, buffers are made
            for kind, worker in workers.items():
                assert worker.stdin and worker.stdout
                worker.stdin.write("step\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if not line:
                    raise SystemExit(f"{row}: the {kind} step failed")
                found[kind].append(json.loads(line))
            said = ", ".join(f"{kind} {steps[-1]['seconds']:.2f} s" for kind, steps in found.items())
            print(f"{row} {number + 1 - warm_up}/{rounds}: {said}", flush=True)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"jobs": jobs, "warm-up": warm_up, "steps": found, "machine": machine()}, indent=1))


def start(job: dict[str, Any], script: str) -> subprocess.Popen[str]:
    # A cache of its own, so that nothing of an earlier run comes back.
    cache = str(Path(job["images"]).with_name("cache"))
    environment = dict(os.environ, OMP_NUM_THREADS=str(job["threads"]), RKD_CACHE=cache)
    if checkout := job.get("checkout"):
        script = str(Path(checkout) / "benchmarks" / "speed.py")
        environment |= {"PYTHONPATH": str(Path(checkout) / "src"), "RKD_CACHE": f"{cache}-before", **job["environment"]}
    command = [sys.executable, script, "--worker", json.dumps(job)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def machine() -> dict[str, Any]:
    from rkd.profiling.machine import cpu_name

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "load": load, "python": platform.python_version()}


def make_images(path: Path, count: int = IMAGES) -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])


def timed(content: dict[str, Any], kind: str, what: str = "seconds") -> list[float]:
    return [step[what] for step in content["steps"][kind][content["warm-up"] :]]

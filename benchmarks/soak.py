"""A long training with an eye on memory: does anything grow?

    python benchmarks/soak.py [--out runs/soak] [--steps 2100] [--figure docs/results/soak.svg]

Trains a tiny student with mtard-anl on digits (two teachers, PGD, adaptive weights, an average of weights, a validation
and a checkpoint every epoch) and notes the process's resident memory after each step, and every hundred steps how many
tensors are alive. Prints one line with the means of the quarters and the growth fitted over the second half.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import time
from array import array
from pathlib import Path
from typing import Any

import torch

from rkd.core.hooks import hookimpl
from rkd.profiling.allocator import keep_freed_memory
from rkd.registry.catalog import load_catalog
from rkd.workflow.plan import Silent
from rkd.workflow.train import train_run

STEPS_AN_EPOCH = 21
"""Of digits in batches of 64, a tenth held out."""


class Sampler:
    """An extension that notes memory, into room that it has from the start."""

    def __init__(self, steps: int) -> None:
        self.sizes = array("d", [0.0]) * steps
        self.tensors: list[tuple[int, int]] = []

    @hookimpl(trylast=True)
    def rkd_after_update(self, run: Any) -> None:
        step = run.state.epoch * len(run.loader) + run.state.batch + 1
        self.sizes[step - 1] = resident()
        if step % 100 == 0:
            gc.collect()
            self.tensors.append((step, sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())))


class Soak(Silent):
    def __init__(self, steps: int) -> None:
        self.sampler = Sampler(steps)

    def training(self, title: str) -> dict[str, Any]:
        return {"sampler": self.sampler} if title == "student" else {}


def resident() -> float:
    """MiB of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(points: list[tuple[int, float]]) -> float:
    """Least squares: units a step."""
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--steps", type=int, default=2100)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    epochs = -(-arguments.steps // STEPS_AN_EPOCH)
    torch.set_num_threads(1)
    keep_freed_memory()
    small = {"reference": "small-cnn", "options": {"width": 8}, "train": {"epochs": 3}}
    table = {
        "loss": {"name": "mtard-anl"},
        "student": {"model": "small-cnn", "width": 4},
        "teachers": [{"role": "robust", **small}, {"role": "clean", **small}],
        "attack": {"steps": 2},
        "extensions": {"ema": {}},
        "batch_size": 64,
        "epochs": epochs,
        "validate": {"steps": 1, "limit": 50},
        "evaluate": {"attacks": ["fgsm"], "limit": 100},
        "device": "cpu",
    }
    shutil.rmtree(arguments.out, ignore_errors=True)
    soak = Soak(epochs * STEPS_AN_EPOCH)
    started = time.monotonic()
    train_run(table, load_catalog(), arguments.out, soak)
    seconds = time.monotonic() - started
    samples, tensors = list(enumerate(soak.sampler.sizes, 1)), soak.sampler.tensors
    (arguments.out / "memory.json").write_text(json.dumps({"samples": samples, "tensors": tensors}))
    parts = [samples[place * len(samples) // 4 :][: len(samples) // 4] for place in range(4)]
    means = ", ".join(f"{sum(size for _, size in part) / len(part):.1f}" for part in parts)
    late = samples[len(samples) // 2 :]
    print(
        f"{len(samples)} steps in {seconds:.0f} s; resident memory, means of the four quarters: {means} MiB; second "
        f"half: {late[0][1]:.1f} to {late[-1][1]:.1f} MiB, {1024 * slope(late):.3f} KiB a step; live tensors "
        f"{tensors[0][1]} after 100 steps, {tensors[-1][1]} at the end ({platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__})"
    )
    if arguments.figure:
        draw(samples, arguments.figure)


def draw(samples: list[tuple[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rkd"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 2.6))
    steps, sizes = zip(*samples, strict=True)
    axes.plot(steps, sizes, color="#0072b2", linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(0, 1.15 * max(sizes))
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()

"""What rkd says before a training, and what the training then takes.

    python benchmarks/forecast.py [NAME...] [--data-dir DIR]

Runs each of RUNS in a folder of its own and prints the forecast, the time of the training with its validations
(without teachers' preparation and the final evaluation), and memory, as lines of a table. A run has a fresh process,
since a process's peak of memory never falls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rkd.core.hooks import hookimpl
from rkd.profiling.bench import peak_bytes
from rkd.registry.catalog import load_catalog
from rkd.registry.recipes import merge
from rkd.storage.runfolder import RunFolder
from rkd.workflow.plan import Silent
from rkd.workflow.train import train_run

SMALL = {"evaluate": {"attacks": [], "limit": 16, "checks": "off", "examples": 0}, "validate": {"limit": 1000}}

RUNS: dict[str, dict[str, Any]] = {
    "digits-trades": {"loss": {"name": "trades"}, "student": {"model": "small-cnn"}, "epochs": 10},
    "digits-rslad": {
        "loss": {"name": "rslad"}, "student": {"model": "small-cnn", "width": 8}, "epochs": 10, "teacher": "resnet20",
    },
    "digits-rslad-flip": {
        "loss": {"name": "rslad"}, "student": {"model": "small-cnn", "width": 8}, "epochs": 10, "teacher": "resnet20",
        "augments": {"flip": {}}, "teacher_cache": "on",
    },
    "digits-fused": {
        "loss": {"name": "trades"}, "student": {"model": "resnet20"}, "epochs": 2, "engine": "fused",
    },
    "mnist-trades": {"loss": {"name": "trades"}, "student": {"model": "small-cnn"}, "epochs": 1,
                     "data": {"name": "mnist"}, "attack": {"steps": 3}},
}  # fmt: skip


class Clock:
    """An extension that notes the processor's time of the training: on a machine that does something else too, the
    forecast can only be right about this one."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    @hookimpl
    def rkd_run_start(self, run: Any) -> None:
        self.began = time.process_time()

    @hookimpl
    def rkd_epoch_end(self, run: Any, metrics: Any) -> None:
        self.said["processor"] = (time.process_time() - self.began) / torch.get_num_threads()


def one(name: str, data_dir: str | None) -> dict[str, Any]:
    """Forecast and truth of a run."""
    import torch

    catalog = load_catalog()
    table = merge(SMALL, {key: value for key, value in RUNS[name].items() if key != "teacher"})
    if data_dir and "data" in table:
        table["data"]["dir"] = data_dir
    said: dict[str, Any] = {}

    class Listener(Silent):
        def cost(self, title: str, run: Any, card: Any, seconds: float) -> None:
            said.update(seconds=seconds, memory=card.memory)

        def training(self, title: str) -> dict[str, Any]:
            return {"clock": Clock(said)}

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if teacher := RUNS[name].get("teacher"):
            first = {"loss": {"name": "ce"}, "student": {"model": teacher}, "epochs": 1, **SMALL}
            train_run(first, catalog, place / "teacher")
            table["teachers"] = [{"role": "robust", "reference": str(place / "teacher")}]
        train_run(table, catalog, place / "run", Listener())
        taken = RunFolder(place / "run").history()[-1]["seconds"]
    return {**said, "taken": taken, "peak": peak_bytes(torch.device("cpu"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], metavar="NAME")
    parser.add_argument("--data-dir")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.names[0], given.data_dir)))
        return
    print(
        "| run | forecast, s | taken, s | of the processor, s | memory forecast, MiB | peak, MiB |\n"
        "|---|---|---|---|---|---|"
    )
    for name in given.names or RUNS:
        words = [sys.executable, __file__, name, "--one", *(["--data-dir", given.data_dir] if given.data_dir else [])]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        times = f"{found['seconds']:.1f} | {found['taken']:.1f} | {found['processor']:.1f}"
        memory = f"{found['memory'] / 2**20:.0f} | {found['peak'] / 2**20:.0f}"
        print(f"| {name} | {times} | {memory} |", flush=True)


if __name__ == "__main__":
    main()

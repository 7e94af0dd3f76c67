"""The tables of docs/scaling.md: what a step costs, measured and calculated, and how it grows with processes.

python benchmarks/scaling.py flops                 # counted on real steps, beside the formula
python benchmarks/scaling.py large                 # calculated: CIFAR-10 with WRN-70-16, ImageNet with ResNet-50
python benchmarks/scaling.py steps                 # seconds of a step here: nets, steps of the search, batch sizes
python benchmarks/scaling.py processes 1 2 4       # seconds of a step here, by processes under torchrun
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rkd.core.run import Run
from rkd.core.trainer import train_step
from rkd.data.dataset import ArraySplit, Dataset
from rkd.distributed.ranks import ALONE, Ranks, join, leave
from rkd.nets.net import NetTeacher
from rkd.registry.catalog import load_catalog
from rkd.workflow.build import build
from rkd.workflow.nets import build_net
from rkd.workflow.resolve import resolve

GPU_PEAK = 312e12
"""FLOPs a second of an A100 in bfloat16, dense, by its data sheet."""
USED = 0.35
"""The share of it that is assumed to be reached."""
INSIDE, BETWEEN = 200e9, 20e9
"""Bytes a second for each GPU in an all-reduce, assumed: NVLink within a node, 200 Gbit/s InfiniBand between nodes."""
NODE = 8
"""GPUs of a node."""

TWO_TRAINED = {"trades", "rslad", "ard", "adaad", "mtard-anl"}
"""Methods whose loss runs the student on two views."""


class Counted(TorchDispatchMode):
    """FLOPs by torch's own formulas. `FlopCounterMode` itself also follows modules, with hooks that a gradient by the
    images alone does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def formula(loss: str, steps: int, student: float, teacher: float) -> float:
    """FLOPs of a training step for one image, from those of one forward of each net.

    A backward by the images alone costs a forward, one by images and weights two. So a step of the search is 2 F, a
    trained view 3 F; TRADES asks for the clean answer once more; AdaAD's search differentiates the teacher too.
    """
    views = 2 if loss in TWO_TRAINED else 1
    search = 0 if loss == "ce" else 2 * steps
    extra = 1 if loss == "trades" else 0
    teachers = {"rslad": 1, "ard": 1, "mtard-anl": 2, "adaad": 2 + 2 * steps}.get(loss, 0)
    return (search + 3 * views + extra) * student + teachers * teacher


def forward_flops(model: str, shape: tuple[int, int, int], classes: int) -> tuple[float, int]:
    """FLOPs of one forward for one image (a multiplication and an addition are two), and the parameters."""
    net = load_catalog().create("model", model, {})(shape, classes).eval().to("meta")
    with Counted() as counter:
        net(torch.empty(2, *shape, device="meta"))
    return counter.flops / 2, sum(p.numel() for p in net.parameters())


def a_run(loss: str, student: str, batch: int, steps: int, ranks: Ranks = ALONE, size: int = 32) -> Run:
    """A run on random images of CIFAR's shape: times and counts do not depend on what is in them."""
    catalog = load_catalog()
    table: dict[str, Any] = {
        "loss": {"name": loss},
        "student": {"model": student},
        "batch_size": batch,
        "device": "cpu",
    }
    if loss != "ce":
        table["attack"] = {"steps": steps}
    plan = resolve(table, catalog)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(max(4 * batch, 64), 3, size, size, generator=generator)
    split = ArraySplit(images, torch.arange(len(images)) % 10)
    classes = tuple(map(str, range(10)))
    plan.data = Dataset("random", split, split, (3, size, size), classes, (0.5,) * 3, (0.25,) * 3, plan.data.threat)
    nets = {role: build_net("resnet20", {}, plan.data, catalog) for role in plan.loss.roles}
    return build(plan, catalog, {role: NetTeacher(net, role) for role, net in nets.items()}, ranks=ranks)


def seconds(run: Run, times: int) -> list[float]:
    """Of `times` steps, after one that does not count."""
    found = []
    while len(found) <= times:
        for number, batch in enumerate(run.loader.batches(0)):
            run.state.batch = number
            started = time.perf_counter()
            train_step(run, batch)
            found.append(time.perf_counter() - started)
    return found[1 : times + 1]


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def flops() -> None:
    rows = []
    for loss in ("ce", "pgd-at", "trades", "rslad", "mtard-anl", "adaad"):
        for steps in (3, 10):
            run = a_run(loss, "resnet8", 4, steps)
            step = run.step(next(run.loader.batches(0)))
            with Counted() as counter:
                run.backward(run, step)
            counted = counter.flops / 4
            student, teacher = (forward_flops(name, (3, 32, 32), 10)[0] for name in ("resnet8", "resnet20"))
            wanted = formula(loss, steps, student, teacher)
            rows.append([f"`{loss}`", str(steps), f"{counted / 1e6:.1f}", f"{wanted / 1e6:.1f}",
                         f"{100 * (counted / wanted - 1):+.1f} %"])  # fmt: skip
    table(["method", "steps", "counted, MFLOP an image", "formula", "difference"], rows)


def large() -> None:
    cases = [
        ("CIFAR-10", "WRN-70-16, `trades`", "trades", "wrn70-16", None, (3, 32, 32), 10, 50_000, 200, 10, 1024),
        ("CIFAR-10", "ResNet-18 from WRN-70-16, `rslad`", "rslad", "resnet18", "wrn70-16", (3, 32, 32), 10, 50_000,
         300, 10, 1024),
        ("ImageNet", "ResNet-50, `pgd-at`", "pgd-at", "torchvision:resnet50", None, (3, 224, 224), 1000, 1_281_167, 100,
         3, 1024),
        ("ImageNet", "ResNet-50 from WRN-50-2, `rslad`", "rslad", "torchvision:resnet50", "torchvision:wide_resnet50_2",
         (3, 224, 224), 1000, 1_281_167, 100, 3, 1024),
    ]  # fmt: skip
    rows, wires = [], []
    for data, what, loss, student, teacher, shape, classes, images, epochs, steps, batch in cases:
        forward, parameters = forward_flops(student, shape, classes)
        other = forward_flops(teacher, shape, classes)[0] if teacher else 0.0
        image = formula(loss, steps, forward, other)
        whole = image * images * epochs
        updates = epochs * -(-images // batch)
        hours = {}
        for gpus in (1, 8, 64):
            computing = whole / (gpus * GPU_PEAK * USED)
            rate = INSIDE if gpus <= NODE else BETWEEN
            sent = 2 * (gpus - 1) / gpus * 4 * parameters
            sending = updates * sent / rate
            hours[gpus] = (computing + sending) / 3600
            if gpus > 1:
                wires.append([data, what, str(gpus), f"{sent / 1e6:.0f} MB", f"{1000 * sent / rate:.1f} ms",
                              f"{1000 * image * batch / (gpus * GPU_PEAK * USED):.0f} ms",
                              f"{100 * sending / (computing + sending):.1f} %"])  # fmt: skip
        rows.append([data, what, f"{parameters / 1e6:.1f} M", f"{forward / 1e9:.2f}", f"{image / 1e9:.0f}",
                     f"{whole / 1e18:,.0f}", *(f"{value:,.1f}" for value in hours.values())])  # fmt: skip
    table(["data", "training", "parameters", "forward, GFLOP", "step, GFLOP an image", "in all, EFLOP", "hours, 1 GPU",
           "8 GPUs", "64 GPUs"], rows)  # fmt: skip
    table(["data", "training", "GPUs", "sent by each GPU a step", "sending", "computing", "share of sending"], wires)


def steps() -> None:
    rows = []
    for student, batch, many in (
        ("resnet8", 32, 10), ("resnet20", 32, 10), ("resnet32", 32, 10), ("resnet8", 32, 2), ("resnet8", 32, 5),
        ("resnet8", 32, 20), ("resnet8", 16, 10), ("resnet8", 64, 10), ("resnet8", 128, 10),
    ):  # fmt: skip
        found = seconds(a_run("pgd-at", student, batch, many), 5)
        work = formula("pgd-at", many, forward_flops(student, (3, 32, 32), 10)[0], 0) * batch
        rows.append([student, str(batch), str(many), f"{work / 1e9:.1f}", *_spread(found),
                     f"{work / min(found) / 1e9:.0f}"])  # fmt: skip
    table(["student", "batch", "steps of PGD", "GFLOP a step", "seconds, fastest of 5", "median", "GFLOP/s"], rows)


def _spread(found: list[float]) -> tuple[str, str]:
    return f"{min(found):.3f}", f"{statistics.median(found):.3f}"


def processes(counts: list[int]) -> None:
    rows = []
    for student in ("resnet8", "resnet20"):
        for count in counts:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
                       __file__, "worker", student]  # fmt: skip
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append([student, str(count), *_spread(found["steps"]), f"{1000 * min(found['sharing']):.1f} ms",
                         f"{found['bytes'] / 1e6:.2f} MB"])  # fmt: skip
    table(["student", "processes", "seconds a step, fastest of 6", "median", "summing gradients, fastest of 6",
           "gradients"], rows)  # fmt: skip


def worker(student: str) -> None:
    torch.set_num_threads(1)
    ranks = join()
    run = a_run("rslad", student, 64, 10, ranks)
    found = {"steps": seconds(run, 6), "sharing": [], "bytes": 0}
    net = run.student.net
    found["bytes"] = sum(p.numel() * p.element_size() for p in net.parameters())
    for _ in range(6):
        ranks.objects(None)
        started = time.perf_counter()
        ranks.share_step(net, 1 / ranks.size, run.loss_value)
        found["sharing"].append(time.perf_counter() - started)
    if ranks.first:
        print(json.dumps(found))
    leave(ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flops", "large", "steps", "processes", "worker"])
    parser.add_argument("more", nargs="*")
    asked = parser.parse_args()
    if asked.what == "worker":
        return worker(asked.more[0])
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {Path(__file__).name}\n")
    if asked.what == "processes":
        return processes([int(count) for count in asked.more or ("1", "2", "4")])
    torch.set_num_threads(1)
    return {"flops": flops, "large": large, "steps": steps}[asked.what]()


if __name__ == "__main__":
    main()

"""The tables of docs/scaling.md: what a step costs, measured and calculated, and how it grows with processes.

python benchmarks/scaling.py flops                 # counted on real steps, beside the formula
python benchmarks/scaling.py large                 # calculated: hours, price, memory and bytes of large trainings
python benchmarks/scaling.py check                 # each formula of `large` beside a small case that is measured
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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import rkd.nets.net
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
PRICE = 2.0
"""Dollars an hour of one GPU, assumed."""

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


def a_run(loss: str, student: str, batch: int, steps: int, ranks: Ranks = ALONE, size: int = 32, parts: int = 1) -> Run:
    """A run on random images of CIFAR's shape: times and counts do not depend on what is in them."""
    catalog = load_catalog()
    table: dict[str, Any] = {
        "loss": {"name": loss},
        "student": {"model": student},
        "batch_size": batch,
        "grad_accumulation": parts,
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


def activations(model: str, shape: tuple[int, int, int], classes: int) -> float:
    """Bytes that the backward by the weights keeps of one image in float32, counted on the meta device."""
    net = load_catalog().create("model", model, {})(shape, classes).train().to("meta")
    own = {weight.untyped_storage()._cdata for weight in net.state_dict().values()}
    kept: dict[int, Any] = {}  # with the storages, so that none of their names is given again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    count = 8  # what does not grow with the images, norms' statistics, is small beside them
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(torch.empty(count, *shape, device="meta"))
    del out
    return sum(storage.nbytes() for storage in kept.values()) / count


def memory(
    loss: str, images: int, kept: float, parameters: float, teachers: float, searched: float = 0.0, low: bool = False
) -> float:
    """Bytes of a step on a GPU: weights, gradients and momentum, the teachers' weights, and the activations of the
    trained views or of the search, whichever are more; `searched`: of a teacher that the search differentiates. `low`:
    in bfloat16, which activations and the engine's copy have then, and the weights have not."""
    views = 2 if loss in TWO_TRAINED else 1
    size = 2 if low else 4
    activations = max(views * kept, kept + searched) * images * size / 4
    return (12 + (size if low else 0)) * parameters + 4 * teachers + activations


def sent_by_each(parameters: float, gpus: int) -> float:
    """Bytes of gradients that each process sends in a step, and receives: a ring."""
    return 2 * (gpus - 1) / gpus * 4 * parameters


LARGE = {
    "CIFAR-10, ResNet-18 from WRN-34-10": ("resnet18", "wrn34-10", (3, 32, 32), 10, 50_000, 300, 10),
    "CIFAR-10, ResNet-18 from WRN-70-16": ("resnet18", "wrn70-16", (3, 32, 32), 10, 50_000, 300, 10),
    "the same with 1M generated images, 100 epochs": ("resnet18", "wrn70-16", (3, 32, 32), 10, 1_050_000, 100, 10),
    "ImageNet, ResNet-50 from WRN-50-2":
        ("torchvision:resnet50", "torchvision:wide_resnet50_2", (3, 224, 224), 1000, 1_281_167, 100, 3),
    "ImageNet, MobileNetV3 from WRN-50-2":
        ("torchvision:mobilenet_v3_large", "torchvision:wide_resnet50_2", (3, 224, 224), 1000, 1_281_167, 100, 3),
}  # fmt: skip
"""Student, teacher, shape, classes, images of an epoch, epochs, steps of the search. The batch is 1024."""
BATCH = 1024


def large() -> None:
    rows = []
    for what, (student, teacher, shape, classes, images, epochs, steps) in LARGE.items():
        (forward, parameters), (other, weights) = (forward_flops(name, shape, classes) for name in (student, teacher))
        kept, of_teacher = (activations(name, shape, classes) for name in (student, teacher))
        for loss in ("pgd-at", "trades", "rslad", "mtard-anl", "adaad"):
            image = formula(loss, steps, forward, other)
            teachers = weights * {"rslad": 1, "mtard-anl": 2, "adaad": 1}.get(loss, 0)
            hours, cells = {}, []
            for gpus in (1, 8, 64):
                sent, rate = sent_by_each(parameters, gpus), INSIDE if gpus <= NODE else BETWEEN
                computing = image * BATCH / (gpus * GPU_PEAK * USED)
                hours[gpus] = epochs * -(-images // BATCH) * (computing + sent / rate) / 3600
                searched = of_teacher if loss == "adaad" else 0.0
                held = memory(loss, BATCH // gpus, kept, parameters, teachers, searched, low=True)
                cells += [f"{hours[gpus]:,.3g}", f"{hours[gpus] * gpus * PRICE:,.0f}", f"{held / 2**30:.1f}"]
            rows.append([what, f"`{loss}`", f"{image / 1e9:.1f}", *cells, f"{sent_by_each(parameters, 64) / 1e6:.0f}"])
    table(["training", "method", "GFLOP an image", *(f"{name}, {gpus} GPU" for gpus in (1, 8, 64)
           for name in ("hours", "$", "GiB each")), "MB sent by each of 64 a step"], rows)  # fmt: skip


class Live(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return out


def check() -> None:
    rows = []

    def compared(what: str, calculated: float, measured: float, unit: str) -> None:
        rows.append([what, f"{calculated:.3g} {unit}", f"{measured:.3g} {unit}",
                     f"{100 * (calculated / measured - 1):+.1f} %"])  # fmt: skip

    shape, images = (3, 32, 32), 64
    for student in ("resnet8", "resnet20"):
        parameters, kept = forward_flops(student, shape, 10)[1], activations(student, shape, 10)
        of_teacher = activations("resnet20", shape, 10)
        for loss, parts in (("pgd-at", 1), ("rslad", 1), ("rslad", 4), ("adaad", 1)):
            run = a_run(loss, student, images, 2, parts=parts)
            batch = next(run.loader.batches(0))
            # As on a GPU: a CPU's training keeps less (rkd.nets.checkpointing).
            before, rkd.nets.net.checkpointed = rkd.nets.net.checkpointed, lambda net, x: nullcontext()
            try:
                with Live() as live:
                    train_step(run, batch)
            finally:
                rkd.nets.net.checkpointed = before
            # What was there before the step was not made inside: weights.
            searched = of_teacher if loss == "adaad" else 0.0
            calculated = memory(loss, images // parts, kept, parameters, 0, searched) - 4 * parameters
            compared(f"memory, `{loss}`, {student}, {images} images in {parts}", calculated / 2**20, live.most / 2**20,
                     "MiB")  # fmt: skip
    for count in (2, 4):
        found = under_torchrun("resnet20", count)
        compared(f"sent by each of {count} processes, resnet20", sent_by_each(found["bytes"] / 4, count) / 1e6,
                 found["sent"] / 1e6, "MB")  # fmt: skip
    methods = [("pgd-at", 10), ("pgd-at", 3), ("trades", 10), ("rslad", 10), ("mtard-anl", 10), ("adaad", 3)]
    runs = [a_run(loss, "resnet20", 32, steps) for loss, steps in methods]
    taken: list[list[float]] = [[] for _ in methods]
    for _ in range(4):  # in turn, so that all meet the same state of the machine
        for run, times in zip(runs, taken, strict=True):
            times.append(processor_seconds(run))
    forward = forward_flops("resnet20", shape, 10)[0]
    first = min(taken[0][1:])
    for (loss, steps), times in list(zip(methods, taken, strict=True))[1:]:
        ratio = formula(loss, steps, forward, forward) / formula("pgd-at", 10, forward, forward)
        compared(f"seconds, `{loss}`, {steps} steps, as a share of `pgd-at` with 10", ratio, min(times[1:]) / first, "")
    table(["what", "calculated", "measured", "difference"], rows)


def processor_seconds(run: Run) -> float:
    """Of one step, of this process: what runs beside it hardly counts."""
    run.state.batch = 0
    batch = next(run.loader.batches(0))
    started = time.process_time()
    train_step(run, batch)
    return time.process_time() - started


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
            found = under_torchrun(student, count)
            rows.append([student, str(count), *_spread(found["steps"]), f"{1000 * min(found['sharing']):.1f} ms",
                         f"{found['bytes'] / 1e6:.2f} MB"])  # fmt: skip
    table(["student", "processes", "seconds a step, fastest of 6", "median", "summing gradients, fastest of 6",
           "gradients"], rows)  # fmt: skip


def under_torchrun(student: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__,
               "worker", student]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def loopback_bytes() -> int:
    """What this machine has sent to itself so far; 0 where Linux does not say."""
    file = Path("/proc/net/dev")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[9]) for line in lines if line.strip().startswith("lo:")), 0)


def worker(student: str) -> None:
    torch.set_num_threads(1)
    ranks = join()
    run = a_run("rslad", student, 64, 10, ranks)
    found = {"steps": seconds(run, 6), "sharing": [], "bytes": 0}
    net = run.student.net
    found["bytes"] = sum(p.numel() * p.element_size() for p in net.parameters())
    sent = []
    for _ in range(6):
        ranks.objects(None)
        time.sleep(0.05)  # until no other process is still busy with that
        before = loopback_bytes()
        started = time.perf_counter()
        ranks.share_step([net], 1 / ranks.size, run.loss_value)
        found["sharing"].append(time.perf_counter() - started)
        time.sleep(0.05)
        sent.append(loopback_bytes() - before)
    found["sent"] = min(sent) / ranks.size  # the least: others may send, too
    if ranks.first:
        print(json.dumps(found))
    leave(ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flops", "large", "check", "steps", "processes", "worker"])
    parser.add_argument("more", nargs="*")
    asked = parser.parse_args()
    if asked.what == "worker":
        return worker(asked.more[0])
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {Path(__file__).name}\n")
    if asked.what == "processes":
        return processes([int(count) for count in asked.more or ("1", "2", "4")])
    torch.set_num_threads(1)
    return {"flops": flops, "large": large, "check": check, "steps": steps}[asked.what]()


if __name__ == "__main__":
    main()

"""What each method's step costs, beside the forwards and backwards that it is made of: docs/results/methods-cost.md.

    python benchmarks/methods_cost.py [--student resnet20] [--batch 128] [--precision fp32] [--losses rslad ...]

Each method's forwards and backwards are counted by hooks on the nets in a step that runs them as they are. Then the
step and its parts are timed in turn in one process: a training forward with its backward, a gradient by the images on
the engine's copy, a forward alone, the same of teachers. `ratio` is the step over the sum of its parts; a step does
more than that (data, losses, optimiser, projections), which is what the ratio shows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from in_turn import machine, make_images
from torch import Tensor, nn

from rkd.api import catalog
from rkd.core.errors import RkdError
from rkd.core.random import forked
from rkd.core.run import Run
from rkd.core.trainer import advance
from rkd.nets.net import Net, NetTeacher
from rkd.registry.losses import loss_class
from rkd.workflow.build import accelerate, build, choose_precision
from rkd.workflow.resolve import resolve

TEACHER = "resnet56"


def run_of(loss: str, arguments: argparse.Namespace, engine: str) -> Run:
    """A training of that method with untrained teachers, without cached answers."""
    roles = list(getattr(loss_class(catalog(), loss), "roles", ()) or ())
    table: dict[str, Any] = {
        "loss": {"name": loss}, "student": {"model": arguments.student}, "engine": engine, "device": "cpu",
        "data": {"name": f"npz:{arguments.images.absolute()}", "validation": 0}, "batch_size": arguments.batch,
        "augments": {"crop": {}, "flip": {}}, "precision": arguments.precision, "epochs": 1000,
        "teachers": [{"reference": TEACHER, "role": role} for role in roles],
    }  # fmt: skip
    plan = resolve(table, catalog())
    dtype = choose_precision(arguments.precision, torch.device("cpu"))
    teachers = {}
    for number, role in enumerate(roles):
        with forked(number):
            net = Net(catalog().create("model", TEACHER)(plan.data.shape, len(plan.data.classes)))
        net.autocast = dtype
        teachers[role] = NetTeacher(net, role)
    run = build(plan, catalog(), teachers)
    accelerate(run, plan.config.engine)
    run.hooks.hook.rkd_run_start(run=run)
    return run


def counted(run: Run) -> dict[str, float]:
    """Forwards of whole batches in a step, by net and kind: `train` with a backward to the weights, `search` with one
    to the images, `forward` alone. Companions count as students."""
    counts: Counter[str] = Counter()
    every = [("student", net) for net in run.nets.values()]
    every += [("teacher", teacher.net) for teacher in run.teachers.values() if isinstance(teacher, NetTeacher)]
    batch = next(iter(run.loader.batches(0)))
    advance(run, batch)  # teachers are tried in parts of a batch the first time

    def hook(who: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            learns = any(weight.requires_grad for weight in module.parameters())
            kind = "forward" if not output.requires_grad else "train" if learns else "search"
            counts[f"{who} {kind}"] += len(output)

        return seen

    with ExitStack() as stack:
        for who, net in every:
            stack.callback(net.register_forward_hook(hook(who)).remove)
        advance(run, batch)
    kinds = [f"{who} {kind}" for who in ("student", "teacher") for kind in ("train", "search", "forward")]
    return {kind: counts[kind] / len(batch) for kind in kinds}


def parts_of(run: Run, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """How long each kind takes: functions that do it once."""
    student = run.student
    teacher = next(iter(run.teachers.values()), None)

    def train() -> None:
        torch.nn.functional.cross_entropy(student.logits({"clean": x}, "train")["clean"], y).backward()
        run.optimizer.zero_grad(set_to_none=True)

    def search() -> None:
        with student.attacked("adv", "eval") as probe:
            images = x.clone().requires_grad_()
            torch.autograd.grad(probe(images).sum(), images)

    def forward() -> None:
        with student.attacked("adv", "eval") as probe, torch.no_grad():
            probe(x)

    found: dict[str, Callable[[], object]] = {
        "student train": train, "student search": search, "student forward": forward,
    }  # fmt: skip
    if teacher is not None:

        def teach() -> None:
            with torch.no_grad():
                teacher.logits(x)

        def teach_search() -> None:
            images = x.clone().requires_grad_()
            torch.autograd.grad(teacher.logits(images).sum(), images)

        found |= {"teacher forward": teach, "teacher search": teach_search}
    return found


def measured(loss: str, arguments: argparse.Namespace) -> str:
    """A line of the table."""
    counts = counted(run_of(loss, arguments, "plain"))
    run = run_of(loss, arguments, "auto")
    batch = next(iter(run.loader.batches(0)))
    y = batch.y if batch.y.ndim == 1 else batch.y.argmax(1)
    parts = {kind: do for kind, do in parts_of(run, batch.x, y).items() if counts[kind]}
    times: dict[str, list[float]] = {"step": [], **{kind: [] for kind in parts}}
    for number in range(arguments.rounds + 1):
        for kind, do in {"step": lambda: advance(run, batch), **parts}.items():
            begun = time.perf_counter()
            do()
            if number:
                times[kind].append(time.perf_counter() - begun)
    sums = [sum(counts[kind] * times[kind][place] for kind in parts) for place in range(arguments.rounds)]
    ratios = sorted(step / whole for step, whole in zip(times["step"], sums, strict=True))
    cells = [f"{count:g}" for count in counts.values()]
    middle = statistics.median(times["step"])
    return (
        f"| {loss} | {' | '.join(cells)} | {middle:.2f} | {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} - {ratios[-1]:.2f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--losses", nargs="+", default=catalog().names("loss"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=Path, default=Path("runs/speed/random.npz"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/methods-cost.md"))
    arguments = parser.parse_args()
    make_images(arguments.images)
    lines = [
        "| method | student: train | search | forward | teachers: train | search | forward | step, s | ratio |",
        "|---" + "|---:" * 8 + "|",
    ]
    for loss in arguments.losses:
        try:
            lines.append(measured(loss, arguments))
        except RkdError as error:
            lines.append(f"| {loss} | {str(error).splitlines()[0]} |")
        print(lines[-1], flush=True)
    here = machine()
    lines += [
        "", f"{arguments.student}, batch {arguments.batch}, {arguments.precision}; teachers {TEACHER}; {here['cpu']}, "
        f"{torch.get_num_threads()} of {here['cores']} cores, torch {torch.__version__}; medians of {arguments.rounds} "
        "rounds after one of warm-up, with the least and greatest ratio.",
    ]  # fmt: skip
    page = arguments.table
    text = page.read_text() if page.is_file() else "# What each method's step costs\n\n<!-- table -->\n<!-- end -->\n"
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end -->")
    page.write_text(before + "\n".join(["<!-- table -->", *lines, "<!-- end -->"]) + after)


if __name__ == "__main__":
    main()

"""A whole training step of rkd beside one written as the papers' scripts write it: docs/results/speed.md.

    python benchmarks/speed.py [--rows rslad-resnet20 ...] [--rounds 7] [--batch 128] [--threads 2]
    python benchmarks/speed.py --table-only
    python benchmarks/speed.py --beside ../before [--beside-env NAME=VALUE ...]   # its step takes turns with this one's

The plain step is eager float32 in PyTorch's default layout: PGD of ten steps in eval mode from 0.001 randn, separate
forwards of the student on adversarial and clean images, one forward of each teacher, SGD as PyTorch makes it. It gets
its batch ready made; rkd's step (`rkd.core.trainer.advance`, what `rkd run` does with a batch) makes its own with crop
and flip. Each kind of step lives in a process of its own, started as a user would start it (the `rkd` command sets the
allocator, a script does not), and the processes take turns, one step each, so that all meet the same state of the
machine; each reports its own peak memory. Images and weights are random. A row that is done is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from in_turn import IMAGES, answer, make_images, measure, timed

STUDENTS = {"mobilenetv2": "resnet56", "resnet20": "resnet56", "resnet18": "wrn34-10"}
"""Student and its robust teacher. The small students get a small one, so that their own part dominates."""
CLEAN_TEACHER = "resnet56"
KINDS = ("plain", "fp32", "bf16")
BEFORE = {"fp32": "before fp32", "bf16": "before bf16"}
"""The same kinds of another checkout, with `--beside`: its own script is the worker."""
STEPS, BATCHES = (1, 2, 5, 10, 20), (32, 64, 128, 256)
LR = 0.001
"""Small: random teachers say next to nothing, and gradients that vanish for good could cost other times."""


# The steps. torch is imported in the workers alone.


def plain_step(job: dict[str, Any]) -> Callable[[], float]:
    """One training step of RSLAD or MTARD, as a script does it. Returns the loss."""
    import torch
    import torch.nn.functional as F

    device = torch.device(job.get("device", "cpu"))

    def net(name: str) -> Any:
        from rkd.api import catalog

        return catalog().create("model", name)((3, 32, 32), 10).to(device)

    torch.manual_seed(0)
    student, robust = net(job["student"]), net(job["teacher"]).eval()
    clean = net(job.get("clean", CLEAN_TEACHER)).eval() if job["method"] == "mtard" else None
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=2e-4)
    images = (torch.randint(0, 256, (IMAGES, 3, 32, 32)) / 255).to(device)
    labels = (torch.arange(IMAGES) % 10).to(device)
    first: list[tuple[float, float]] = []
    weight_clean = 0.5
    place = 0

    def divergence(logits: Any, target: Any) -> Any:
        p = target.softmax(1)
        return (p * (p + 1e-5).log() - p * F.log_softmax(logits, 1)).mean()

    def attack(x: Any, y: Any, soft: Any) -> Any:
        student.eval()
        x_adv = x + 0.001 * torch.randn_like(x)
        for _ in range(job["steps"]):
            x_adv.requires_grad_()
            logits = student(x_adv)
            if soft is not None:
                value = F.kl_div(F.log_softmax(logits, 1), soft.softmax(1), reduction="sum")
            else:
                value = F.cross_entropy(logits, y)
            (gradient,) = torch.autograd.grad(value, [x_adv])
            x_adv = x_adv.detach() + 2 / 255 * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - 8 / 255), x + 8 / 255).clamp(0, 1)
        student.train()
        return x_adv.detach()

    def step() -> float:
        nonlocal place, weight_clean
        rows = [(place + i) % IMAGES for i in range(job["batch"])]
        place += job["batch"]
        x, y = images[rows], labels[rows]
        if clean is None:
            with torch.no_grad():
                soft = robust(x)
            x_adv = attack(x, y, soft)
            optimizer.zero_grad()
            adv = student(x_adv)
            loss = 5 / 6 * divergence(adv, soft) + 1 / 6 * divergence(student(x), soft)
        else:
            x_adv = attack(x, y, None)
            with torch.no_grad():
                soft, natural = robust(x_adv), clean(x)
            optimizer.zero_grad()
            on_adv, on_clean = divergence(student(x_adv), soft), divergence(student(x), natural)
            now = (on_adv.item(), on_clean.item())
            first.append(now)
            relative = [a / b for a, b in zip(now, first[0], strict=True)]
            weight_clean -= 0.025 * (weight_clean - relative[1] / sum(relative))
            loss = (1 - weight_clean) * on_adv + weight_clean * on_clean
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def rkd_step(job: dict[str, Any]) -> Callable[[], float]:
    """One step of rkd's own training loop. Returns the loss."""
    from rkd.core.trainer import advance

    run, stream = rkd_run(job)

    def step() -> float:
        advance(run, next(stream))
        return float(run.loss_value)

    return step


def rkd_run(job: dict[str, Any]) -> tuple[Any, Iterator[Any]]:
    """A run that has been started, and its batches without end. Nets have random weights."""
    import torch

    from rkd.api import catalog
    from rkd.core.random import forked
    from rkd.nets.net import Net, NetTeacher
    from rkd.registry.config import RunConfig
    from rkd.training import teacher_cache
    from rkd.workflow.build import accelerate, build
    from rkd.workflow.resolve import resolve

    with forked(0):
        nets = {role: catalog().create("model", name)((3, 32, 32), 10) for role, name in
                (("robust", job["teacher"]), ("clean", job.get("clean", CLEAN_TEACHER)))}  # fmt: skip
    loss = "mtard-anl" if job["method"] == "mtard" else job["method"]
    roles = {"mtard": ("robust", "clean"), "rslad": ("robust",)}.get(job["method"], ())
    table: dict[str, Any] = {
        "loss": {"name": loss, "reduction": "mean"} if roles else {"name": loss},
        "student": {"model": job["student"], "normalize": "none"},
        "data": {"name": f"npz:{job['images']}", "validation": 0},
        "augments": {"crop": {}, "flip": {}},
        "attack": {"steps": job["steps"], "eps": "8/255", "step_size": "2/255"},
        "teachers": [{"reference": CLEAN_TEACHER, "role": role} for role in roles],
        "batch_size": job["batch"],
        "optimizer": {"lr": LR},
        "epochs": 1000,  # a long training: what is measured at its start pays
        "device": job.get("device", "cpu"),
        "precision": job["kind"],
        **job.get("settings", {}),
    }
    if "engine" in RunConfig.model_fields:
        table["engine"] = job["engine"]
    plan = resolve(table, catalog())
    teachers = {role: NetTeacher(Net(nets[role]), role) for role in roles}
    if job["kind"] == "bf16":
        for teacher in teachers.values():
            teacher.net.autocast = torch.bfloat16  # as rkd.workflow.preparing.teachers does
    for teacher in teachers.values():
        teacher.net.to(plan.config.device)
    run = build(plan, catalog(), teachers)
    accelerate(run, plan.config.engine)
    run.hooks.hook.rkd_run_start(run=run)

    def batches() -> Any:
        with teacher_cache.cached_teachers(run, "on" if job.get("cache") else "off"):
            while True:
                for number, batch in enumerate(run.loader.batches(run.state.epoch)):
                    run.state.batch = number
                    if len(batch) == job["batch"]:
                        yield batch
                run.state.epoch += 1

    return run, batches()


def work(job: dict[str, Any]) -> None:
    """A worker: one step for each line on stdin, one line of JSON about it."""
    if job["kind"] != "plain":
        from rkd.profiling.allocator import keep_freed_memory

        keep_freed_memory()
    import torch

    torch.set_num_threads(job["threads"])
    answer(plain_step(job) if job["kind"] == "plain" else rkd_step(job))


# The parent


def rows(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Each row's jobs by kind."""
    images = arguments.out / "random.npz"
    common = {
        "images": str(images.absolute()),
        "batch": arguments.batch,
        "steps": 10,
        "threads": arguments.threads,
        "engine": arguments.engine,
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for student, teacher in STUDENTS.items():
        for method in ("rslad", "mtard"):
            job = common | {"student": student, "teacher": teacher, "method": method}
            found[f"{method}-{student}"] = {kind: job | {"kind": kind} for kind in arguments.kinds}
            if arguments.beside:
                before = job | {"checkout": str(arguments.beside.absolute()), "environment": dict(arguments.beside_env)}
                found[f"{method}-{student}"] |= {
                    BEFORE[kind]: before | {"kind": kind} for kind in arguments.kinds if kind in BEFORE
                }
    job = common | {"student": "resnet20", "teacher": STUDENTS["resnet20"], "method": "rslad"}
    for steps in STEPS:
        found[f"steps-{steps}"] = {kind: job | {"kind": kind, "steps": steps} for kind in KINDS[:2]}
    for batch in BATCHES:
        found[f"batch-{batch}"] = {kind: job | {"kind": kind, "batch": batch} for kind in KINDS[:2]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", help="these rows alone, such as rslad-resnet20, steps-5, batch-64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="without bf16 where it is slow")
    parser.add_argument(
        "--beside", type=Path, metavar="DIR", help="another checkout, whose step takes turns with this one's"
    )
    parser.add_argument("--beside-env", type=lambda text: tuple(text.split("=", 1)), nargs="*", default=[],
                        metavar="NAME=VALUE", help="what its processes have in their environment besides")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/speed.md"))
    parser.add_argument("--table-only", action="store_true", help="measure nothing: the table of the rows there are")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "plain" not in arguments.kinds:
        parser.error("--kinds needs plain: all ratios of the table are beside it")
    if arguments.worker:
        work(json.loads(arguments.worker))
        return
    every = rows(arguments)
    if unknown := set(arguments.rows or ()) - set(every):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there is {', '.join(every)}")
    if not arguments.table_only:
        make_images(arguments.out / "random.npz")
        for row in arguments.rows or every:
            measure(row, every[row], arguments.rounds, arguments.out, __file__)
    write(arguments, list(every))


# The page


def write(arguments: argparse.Namespace, every: list[str]) -> None:
    done = {row: json.loads((arguments.out / f"{row}.json").read_text()) for row in every
            if (arguments.out / f"{row}.json").is_file()}  # fmt: skip
    main_rows = [row for row in done if not row.startswith(("steps-", "batch-"))]
    lines = ["| step | teacher | batch | plain, s | rkd fp32, s | times as fast | rkd bf16, s | times as fast | plain, MiB | fp32 memory | bf16 memory |",  # noqa: E501
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [line_of(row, done[row]) for row in main_rows]
    if main_rows:
        lines += ["", about(done[main_rows[0]])]
    if any(row.startswith(("steps-", "batch-")) for row in done):
        picture = arguments.table.with_suffix(".svg")
        draw(done, picture)
        lines += ["", f"![Seconds of a step against attack steps and batch size]({picture.name})"]
    table = arguments.table
    text = table.read_text() if table.is_file() else "# Speed of a training step\n\n<!-- table -->\n<!-- end -->\n"
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end -->")
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(before + "\n".join(["<!-- table -->", *lines, "<!-- end -->"]) + after)
    print("\n".join(lines))
    print("\n".join(beside(done)))


def beside(done: dict[str, dict[str, Any]]) -> list[str]:
    """A table of the rows that were measured beside another checkout: seconds now over seconds before, and memory."""
    lines = ["", "| step | kind | before, s | now, s | now / before | before, MiB | now, MiB | now / before |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row, content in done.items():
        for kind, name in BEFORE.items():
            if name not in content["steps"]:
                continue
            before, now = timed(content, name), timed(content, kind)
            ratios = sorted(b / a for a, b in zip(before, now, strict=True))
            peaks = [content["steps"][each][-1]["mib"] for each in (name, kind)]
            lines.append(
                f"| {row} | {kind} | {statistics.median(before):.2f} | {statistics.median(now):.2f} | "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f}) | {peaks[0]:.0f} | "
                f"{peaks[1]:.0f} | {peaks[1] / peaks[0]:.2f} |"
            )
    return lines if len(lines) > 3 else []


def line_of(row: str, content: dict[str, Any]) -> str:
    job = content["jobs"]["plain"]
    plain = timed(content, "plain")
    cells = [f"{job['method'].upper()}, {job['student']}", job["teacher"], str(job["batch"])]
    cells.append(f"{statistics.median(plain):.2f}")
    for kind in KINDS[1:]:
        if kind not in content["steps"]:
            cells += ["-", "-"]
            continue
        seconds = timed(content, kind)
        ratios = sorted(a / b for a, b in zip(plain, seconds, strict=True))
        cells.append(f"{statistics.median(seconds):.2f}")
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})")
    peaks = {kind: steps[-1]["mib"] for kind, steps in content["steps"].items()}
    cells.append(f"{peaks['plain']:.0f}")
    cells += [f"{peaks[kind] / peaks['plain']:.2f}" if kind in peaks else "-" for kind in KINDS[1:]]
    return f"| {' | '.join(cells)} |"


def about(content: dict[str, Any]) -> str:
    job, here = content["jobs"]["plain"], content["machine"]
    version = content["steps"]["plain"][0]["torch"]
    return (
        f"{here['cpu']}, {job['threads']} of {here['cores']} cores, load {here['load']:.1f} at the first row's end, "
        f"torch {version}, Python {here['python']}; medians of {len(timed(content, 'plain'))} steps after two of "
        "warm-up, ratios with their least and greatest; memory is a process's peak, and its ratio to the plain one's."
    )


def draw(done: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rkd"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    panels = (("steps", STEPS, "attack steps, batch 128"), ("batch", BATCHES, "batch, 10 attack steps"))
    for axis, (what, places, label) in zip(axes, panels, strict=True):
        there = [place for place in places if f"{what}-{place}" in done]
        for kind in KINDS[:2]:
            seconds = [statistics.median(timed(done[f"{what}-{place}"], kind)) for place in there]
            axis.plot(there, seconds, "o-", label="rkd, fp32" if kind == "fp32" else kind)
        axis.set_xlabel(label)
        axis.set_ylabel("seconds a step")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.suptitle("RSLAD, ResNet-20")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

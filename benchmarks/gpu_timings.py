"""The parts of benchmarks/gpu.py that take times: steps, epochs, AutoAttack, the first run."""

from __future__ import annotations

import functools
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from autoattack import reference
from gpu_checks import VERDICTS
from gpu_place import KINDS, Cases, Found, Place, job_of, tf32
from in_turn import make_images
from scaling import formula, forward_flops
from speed import plain_step, rkd_run
from torch import Tensor

import rkd
from rkd.core.trainer import advance
from rkd.nets.net import Net
from rkd.profiling.bench import peak_bytes, peaks, wait

METHODS: dict[str, dict[str, Any]] = {
    "n-fgsm": {"method": "pgd-at", "settings": {"attack": {"name": "n-fgsm"}}},
    "pgd-at": {"method": "pgd-at"},
    "trades": {"method": "trades"},
    "rslad": {"method": "rslad"},
    "mtard": {"method": "mtard"},
}
"""Of the part `epoch`, with the jobs that benchmarks/speed.py understands."""

# Speed


def steps(place: Place) -> Cases:
    cells = [(method, student, batch) for batch in place.size.batches for student in place.size.students
             for method in ("rslad", "mtard")]  # fmt: skip

    def named(cell: tuple[str, str, int], kind: str) -> tuple[str, Callable[[], Found]]:
        return ", ".join((*map(str, cell), kind)), functools.partial(step_seconds, place, *cell, kind)

    compiled = [kind for kind in place.size.kinds if KINDS[kind].get("engine") == "compiled"]
    quick = [kind for kind in place.size.kinds if kind not in compiled]
    # What takes a minute to compile comes early for one cell, and last for the others.
    order = [(cells[0], kind) for kind in (*quick, *compiled)]
    order += [(cell, kind) for cell in cells[1:] for kind in quick]
    order += [(cell, kind) for cell in cells[1:] for kind in compiled]
    return {"the device's own peak": functools.partial(own_peak, place)} | dict(named(*one) for one in order)


def own_peak(place: Place) -> Found:
    found = peaks(place.device, torch.bfloat16, min(0.5, place.size.seconds or 0.05))
    place.peak = found["matrix product"]
    return {f"{name}, TFLOP/s": value / 1e12 for name, value in found.items()}


def step_seconds(place: Place, method: str, student: str, batch: int, kind: str) -> Found:
    """Seconds of a step, from a stretch of several without a wait, after two that make buffers and compile."""
    how = KINDS[kind]
    job = job_of(place, method, student, batch, kind=how["kind"], engine=how.get("engine", "auto"))
    fresh(place.device)
    with tf32(how.get("tf32", False)), compiled_with(how.get("mode")):
        if how["kind"] == "plain":
            step: Callable[[], Any] = plain_step(job)
            engine = "-"
        else:
            run, stream = rkd_run(job)
            if "layout" in how:
                lay(run, how["layout"])

            def step() -> None:
                advance(run, next(stream))

        begun = time.perf_counter()
        for _ in range(2):
            step()
        wait(place.device)
        first = time.perf_counter() - begun
        found = []
        for _ in range(place.size.rounds):
            begun = time.perf_counter()
            for _ in range(place.size.each):
                step()
            wait(place.device)
            found.append((time.perf_counter() - begun) / place.size.each)
    seconds = statistics.median(found)
    if how["kind"] != "plain":
        accelerator = run.student.accelerator
        engine = ", ".join(accelerator.choices()) or accelerator.name
    rate = step_flops(place, method, student) * batch / seconds
    return {
        "seconds": seconds, "least": min(found), "most": max(found), "images/s": batch / seconds,
        "TFLOP/s": rate / 1e12, "share of peak": rate / place.peak if place.peak else None,
        "peak MiB": peak_bytes(place.device) / 2**20,
        "first two": first, "engine": engine,
    }  # fmt: skip


def step_flops(place: Place, method: str, student: str) -> float:
    """Operations of a step for one image, by the formulas of docs/scaling.md."""
    shape = (3, 32, 32)
    own, teacher, clean = (
        forward_flops(name, shape, 10)[0] for name in (student, place.size.teacher, place.size.clean)
    )
    return formula("rslad", place.size.steps, own, teacher) + (clean if method == "mtard" else 0)


def lay(run: Any, channels_last: bool) -> None:
    """Nets of a run in that layout, whatever `rkd.nets.memory_format` would choose."""
    nets = [module for net in (run.student.net, *(teacher.net for teacher in run.teachers.values()))
            for module in net.modules() if isinstance(module, Net)]  # fmt: skip
    for net in nets:
        net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        net.channels_last = channels_last


@contextmanager
def compiled_with(mode: str | None) -> Iterator[None]:
    """Inside, the engine's `torch.compile` has that mode: what the engine would gain if it asked for it."""
    original = torch.compile
    if mode:
        torch.compile = functools.partial(original, mode=mode)
    try:
        yield
    finally:
        torch.compile = original


def fresh(device: torch.device) -> None:
    """Give back what an earlier case holds, so that its memory is not counted."""
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# Epochs


def epoch(place: Place) -> Cases:
    return {f"{name}, {student}": functools.partial(epoch_seconds, place, method, student)
            for student in place.size.students[:1] for name, method in METHODS.items()}  # fmt: skip


def epoch_seconds(place: Place, method: Mapping[str, Any], student: str) -> Found:
    """Of 50,000 images with crop and flip in batches of 128, from as many steps as the time allows."""
    images = place.out / "epoch.npz"
    if not images.is_file():
        make_images(images, place.size.epoch)
    batch = min(128, place.size.epoch // 4)
    job = job_of(place, student=student, batch=batch, **{"method": method["method"]})
    run, stream = rkd_run(job | {"images": str(images.absolute()), "settings": method.get("settings", {})})
    for _ in range(2):
        advance(run, next(stream))
    wait(place.device)
    begun, count = time.perf_counter(), 0
    while count == 0 or (time.perf_counter() - begun < place.size.seconds and count * batch < place.size.epoch):
        for _ in range(place.size.each):
            advance(run, next(stream))
        wait(place.device)
        count += place.size.each
    seconds = (time.perf_counter() - begun) / count
    return {"seconds of an epoch": seconds * place.size.epoch / batch, "steps": count, "images/s": batch / seconds}


# AutoAttack


def autoattack(place: Place) -> Cases:
    made: dict[str, Any] = {}

    def trained() -> Found:
        begun = time.perf_counter()
        made["net"], made["x"], made["y"] = robust_net(place)
        return {"seconds": time.perf_counter() - begun, "epochs": place.size.epochs}

    def ours(engine: Any) -> Found:
        net, x, y = made["net"], made["x"], made["y"]
        wait(place.device)
        begun = time.perf_counter()
        result = rkd.evaluate(
            net, (x, y), ["autoattack"], eps=8 / 255, device=place.device, checks="off", engine=engine
        )
        seconds = time.perf_counter() - begun
        outcome = result.outcomes["autoattack"]
        made[engine] = outcome.right
        return {"seconds": seconds, "robust": int(outcome.right.sum()), "clean": int(result.clean.sum()),
                "images": len(y), "engine": outcome.about["engine"]}  # fmt: skip

    def theirs() -> Found:
        x, y = made["x"].to(place.device), made["y"].to(place.device)
        begun = time.perf_counter()
        right = torch.tensor(reference(made["net"], x, y, rkd.ThreatModel("Linf", 8 / 255, 2 / 255)))
        seconds = time.perf_counter() - begun
        equal = {f"equal to {engine}": float((made[engine] == right).double().mean())
                 for engine in ("auto", "bfloat16") if engine in made}  # fmt: skip
        return {"seconds": seconds, "robust": int(right.sum()), **equal,
                "fine": all(value >= VERDICTS for value in equal.values())}  # fmt: skip

    cases: Cases = {"the net": trained}
    cases |= {f"rkd, engine {engine}": functools.partial(ours, engine) for engine in ("auto", "bfloat16")}
    return cases | {"pyautoattack": theirs}


def robust_net(place: Place) -> tuple[Any, Tensor, Tensor]:
    """A student and test images, some of which withstand: a pattern for each class, fainter in some images than the
    radius, in noise."""
    many, size = (5000, 32) if place.size.attacked > 100 else (64, 32)
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 3, size // 4, size // 4, generator=generator).sign()
    patterns = torch.nn.functional.interpolate(patterns, scale_factor=4.0)

    def images(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 10
        strength = 0.12 * torch.rand(count, 1, 1, 1, generator=generator)
        noise = 0.1 * torch.randn(count, 3, size, size, generator=generator)
        return (0.5 + strength * patterns[y] + noise).clamp(0, 1), y

    train, test = images(many), images(place.size.attacked)
    out = place.out / f"robust-{os.getpid()}"
    rkd.train(
        student=place.size.students[0], data=(train, test), loss="pgd-at", attack="n-fgsm", epochs=place.size.epochs,
        optimizer={"lr": 0.05}, device=str(place.device), precision="bf16", out=out,
        settings={"validate": {"every": 1000}, "evaluate": {"attacks": [], "checks": "off", "examples": 0}},
    )  # fmt: skip
    return rkd.load_student(out).to(place.device), *test


# The first run


def first_run(place: Place) -> Cases:
    def whole() -> Found:
        from rkd.cli import cli

        begun = time.perf_counter()
        out = place.out / f"first-run-{os.getpid()}"
        words = ["run", "--device", str(place.device), "--out", str(out), "--name", "first", "--quiet", "--no-report"]
        cli.main([*words, *place.size.first_run], prog_name="rkd", standalone_mode=False)
        results = rkd.load_run(out / "first").results["student"]
        return {"seconds": time.perf_counter() - begun, "clean": results["clean"], "worst case": results["worst_case"]}

    return {"rkd run": whole}

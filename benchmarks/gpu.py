"""What continuous integration cannot show, on one GPU in at most eight minutes: docs/gpu.md.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--parts correctness steps ...] [--out runs/gpu]

Needs torch, numpy and what a light install of rkd has; pyautoattack and scikit-learn for the parts that say so. Parts:

    correctness  two steps of every loss and every attack beside the CPU's, in float32 and in bfloat16
    steps        whole RSLAD and MTARD steps with a WRN-34-10 for a teacher: a plain script, rkd in each precision and
                 layout, compiled, with CUDA graphs
    waiting      whether the host waits for the device within a step, and how busy the device is
    epoch        seconds of an epoch of CIFAR-10 (50,000 images of random bytes)
    autoattack   256 images beside pyautoattack
    first-run    `rkd run`

Each part is a process of its own with a share of the time; each of its cases may fail, which is noted, or finds no time
left, which is noted too. Prints one table last; `OUT/gpu.json` has everything, `OUT/gpu.md` the table.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from autoattack import reference
from in_turn import IMAGES, machine, make_images
from scaling import formula, forward_flops
from speed import CLEAN_TEACHER, plain_step, rkd_run
from torch import Tensor

import rkd
from rkd.api import catalog
from rkd.core.step import AttackPlan
from rkd.core.trainer import advance
from rkd.core.traits import LossTraits, declared, traits_of
from rkd.nets.net import Net
from rkd.profiling.bench import peak_bytes, peaks, wait
from rkd.testing import TinyParts, tiny_batch, tiny_net, tiny_teachers
from rkd.workflow.build import accelerate, build
from rkd.workflow.resolve import resolve

SHARES = {"correctness": 100, "steps": 170, "waiting": 30, "epoch": 40, "autoattack": 60, "first-run": 80}
"""Seconds of each part if there are eight minutes."""
SOFT = 0.85
"""The share of a part's time after which no case begins. At its end the part is stopped."""

FP32, BF16 = 0.05, 0.5
"""How far the update of two steps may be off the CPU's in float32, as a share of its length. Rounding alone turns the
sign of gradients that are nearly 0, and a search takes a whole step that way: `--device cpu`, where fused copies stand
for another device, shows how far that goes."""
VERDICTS = 0.95
"""The share of images whose verdicts have to be equal."""

KINDS: dict[str, dict[str, Any]] = {
    "plain script": {"kind": "plain", "tf32": True},  # torch's own default for convolutions
    "fp32": {"kind": "fp32"},
    "TF32": {"kind": "fp32", "tf32": True},
    "TF32, channels last": {"kind": "fp32", "tf32": True, "layout": True, "engine": "channels-last"},
    "bf16, usual layout": {"kind": "bf16", "layout": False, "engine": "folded"},
    "bf16, nets as they are": {"kind": "bf16", "engine": "plain"},
    "bf16": {"kind": "bf16"},
    "bf16, compiled": {"kind": "bf16", "engine": "compiled"},
    "bf16, CUDA graphs": {"kind": "bf16", "engine": "compiled", "mode": "reduce-overhead"},
}
"""How a step runs. `layout`: channels last or not, instead of the rule; `mode`: of torch.compile."""

METHODS: dict[str, dict[str, Any]] = {
    "n-fgsm": {"method": "pgd-at", "settings": {"attack": {"name": "n-fgsm"}}},
    "pgd-at": {"method": "pgd-at"},
    "trades": {"method": "trades"},
    "rslad": {"method": "rslad"},
    "mtard": {"method": "mtard"},
}
"""Of the part `epoch`, with the jobs that benchmarks/speed.py understands."""

SHORT = {"steps": 3, "queries": 6, "targets": 1, "searches": 2, "candidates": 2, "fraction": 0.02}
"""Options of attacks that make them quick, where an attack has them."""


@dataclass(frozen=True)
class Size:
    """How much is measured. On a machine without a GPU the small size tries that everything runs."""

    losses: tuple[str, ...] | None = None  # all
    attacks: tuple[str, ...] | None = None
    images: int = 64
    students: tuple[str, ...] = ("resnet18", "mobilenetv2")
    teacher: str = "wrn34-10"
    clean: str = CLEAN_TEACHER
    steps: int = 10
    batches: tuple[int, ...] = (512, 128)
    kinds: tuple[str, ...] = tuple(KINDS)
    rounds: int = 3
    each: int = 4
    epoch: int = 50_000
    seconds: float = 5.0
    attacked: int = 256
    epochs: int = 6
    first_run: tuple[str, ...] = ()


SMALL = Size(
    losses=("ce", "rslad"), attacks=("pgd", "n-fgsm"), images=4, students=("small-cnn",), teacher="small-cnn",
    clean="small-cnn", steps=2, batches=(4,), kinds=("plain script", "TF32, channels last", "bf16"), rounds=1, each=1,
    epoch=16, seconds=0, attacked=4, epochs=1,
    first_run=("--epochs", "1", "--teacher-epochs", "1", "--limit-train", "20", "--set", "validate.limit=10",
               "--set", "evaluate.limit=10", "--teacher", "small-cnn", "--teacher", "small-cnn", "--baseline", "none",
               "--evaluate", "fgsm", "--set", "attack.steps=2"),
)  # fmt: skip


@dataclass
class Place:
    """Where a part runs, and how much of it."""

    device: torch.device
    out: Path
    size: Size
    peak: float | None = None
    """Operations a second in bfloat16 that the device was seen to reach."""


Found = Mapping[str, Any]
Cases = dict[str, Callable[[], Found]]
"""What a part does, by name."""


# Correctness


def correctness(place: Place) -> Cases:
    names = catalog()
    losses = place.size.losses or names.names("loss")
    attacks = place.size.attacks or [name for name in names.names("attack") if name != "pgd-joint"]  # asks a teacher
    cases: Cases = {}
    for precision, most in (("fp32", FP32), ("bf16", BF16)):
        for loss in losses:
            cases[f"loss {loss}, {precision}"] = functools.partial(loss_beside, place, loss, precision, most)
    for attack in attacks:
        cases[f"attack {attack}"] = functools.partial(attack_beside, place, attack)
    return cases


def loss_beside(place: Place, loss: str, precision: str, most: float) -> Found:
    """Two steps on the device beside the CPU's in float32."""
    with tf32(False):
        expected = update(small_run(torch.device("cpu"), loss, place.out))
        # A CPU beside itself: with other rounding, of fused copies.
        engine = "auto" if place.device.type == "cpu" else "plain"
        found = update(small_run(place.device, loss, place.out, precision=precision, engine=engine))
    off = float((found - expected).norm() / expected.norm())
    return {"off": off, "most": most, "fine": off <= most}


def small_run(device: torch.device, loss: str, out: Path, **settings: Any) -> Any:
    """A training of a small net on random images: two batches an epoch."""
    images = out / "small.npz"
    if not images.is_file():
        make_images(images, 24)
    names = catalog()
    table: dict[str, Any] = {
        "device": str(device), "loss": {"name": loss}, "student": {"model": "small-cnn", "width": 4},
        "data": {"name": f"npz:{images.absolute()}", "validation": 0}, "augments": {"crop": {}, "flip": {}},
        "batch_size": 12, "epochs": 1, "engine": "plain", "optimizer": {"lr": 0.01},
    }  # fmt: skip
    component = names.find("loss", loss).component
    if "attack" in component.defaults:
        table["attack"] = {"steps": 3}
    # Stubs take their places below; a reference there has to be.
    roles = declared(component, LossTraits).roles or ()
    table["teachers"] = [{"reference": "small-cnn", "role": role} for role in roles]
    plan = resolve(table | settings, names)
    teachers = tiny_teachers(plan.loss.roles, plan.data.shape, len(plan.data.classes))
    for teacher in teachers.values():
        teacher.net.to(device)
    run = build(plan, names, teachers)
    accelerate(run, plan.config.engine)
    return run


def update(run: Any) -> Tensor:
    """What an epoch of two steps adds to the student's weights, on the CPU."""

    def weights() -> Tensor:
        return torch.cat([weight.detach().cpu().double().flatten() for weight in run.student.net.parameters()])

    before = weights()
    run.hooks.hook.rkd_run_start(run=run)
    for batch in run.loader.batches(0):
        advance(run, batch)
    run.monitor.settle(run)
    return weights() - before


class Parts(TinyParts):
    """Nets that an attack asks for come on the device of the evaluation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(catalog())
        self.device = device

    def net(self, *arguments: Any, **options: Any) -> Any:
        return super().net(*arguments, **options).to(self.device)


def attack_beside(place: Place, name: str) -> Found:
    """Verdicts on the device beside the CPU's, of a net with random weights that calls its own answers right."""
    batch = tiny_batch(place.size.images)
    with torch.no_grad():
        y = tiny_net().eval()(batch.x).argmax(1)
    known = catalog().find("attack", name).component.__dataclass_fields__
    options = {key: value for key, value in SHORT.items() if key in known}
    if name == "transfer":
        options["source"] = "any"
    if name == "autoattack-reference":  # nothing makes it short but a ball in which nothing stands
        options = {}
    rights = []
    for device in (torch.device("cpu"), place.device):
        attack = Parts(device).attack(name, options)
        plan = AttackPlan(attack, catalog().create("objective", traits_of(attack).objective))
        eps = 0.5 if name == "autoattack-reference" else 8 / 255
        with tf32(False):
            result = rkd.evaluate(tiny_net().eval().to(device), (batch.x, y), {name: plan}, eps=eps, device=device,
                                  checks="off", engine="plain")  # fmt: skip
        rights.append(result.outcomes[name].right)
    equal = float((rights[0] == rights[1]).double().mean())
    return {"equal": equal, "least": VERDICTS, "right": int(rights[1].sum()), "fine": equal >= VERDICTS}


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 is multiplied with ten bits of mantissa inside, by convolutions and matrix products."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = on
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


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


def job_of(place: Place, method: str, student: str, batch: int, **more: Any) -> dict[str, Any]:
    """As benchmarks/speed.py understands it."""
    images = place.out / "random.npz"
    if not images.is_file():
        make_images(images, max(IMAGES, 4 * max(place.size.batches)))
    return {
        "images": str(images.absolute()), "device": str(place.device), "method": method, "student": student,
        "teacher": place.size.teacher, "clean": place.size.clean, "batch": batch, "steps": place.size.steps,
        "engine": "auto", "kind": "bf16", **more,
    }  # fmt: skip


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


# Waiting


def waiting(place: Place) -> Cases:
    cases: Cases = {f"loss {loss}": functools.partial(waits_of_loss, place, loss)
                    for loss in place.size.losses or catalog().names("loss")}  # fmt: skip
    for method in ("rslad", "mtard"):
        cases[f"profile of {method}"] = functools.partial(profiled, place, method)
    return cases


def waits_of_loss(place: Place, loss: str) -> Found:
    """Of the second epoch: in the first the engine compares its copies with their nets."""
    run = small_run(place.device, loss, place.out, engine="auto")
    update(run)
    run.state.batch = 0
    with host_waits(place.device) as waits:
        for batch in run.loader.batches(0):
            advance(run, batch)
    return {"waits": list(waits), "fine": not waits}


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[str]]:
    """Inside, each wait of the host for a GPU is noted, as far as torch knows of it. A CPU has none."""
    waits: list[str] = []
    if device.type != "cuda":
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]


STOPS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of CUDA in which the host waits; the last one alone, not `cudaMemcpyAsync`."""


def profiled(place: Place, method: str) -> Found:
    """What torch's profiler sees of a step: calls in which the host waits, copies from memory that is not pinned (the
    driver waits for these, and no call says so), and the share of the time in which the device computes."""
    from torch.profiler import ProfilerActivity, profile, record_function

    student, batch = place.size.students[0], place.size.batches[-1]
    run, stream = rkd_run(job_of(place, method, student, batch))
    for _ in range(2):
        advance(run, next(stream))
    wait(place.device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if place.device.type == "cuda" else [])
    begun = time.perf_counter()
    with profile(activities=activities) as watched:
        with record_function("one step"):
            advance(run, next(stream))
        queued = time.perf_counter() - begun
        wait(place.device)
    events = watched.events() or []
    on_host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    on_device = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    (span,) = [event.time_range for event in on_host if event.name == "one step"]
    stops = [event.name for event in on_host
             if event.name in STOPS and span.start <= event.time_range.start <= span.end]  # fmt: skip
    unpinned = [event.name for event in on_device if "Pageable" in event.name]
    kernels = [event.time_range for event in on_device if event.name != "one step"]
    busy = None
    if kernels:
        whole = max(one.end for one in kernels) - min(one.start for one in kernels)
        busy = sum(one.elapsed_us() for one in kernels) / whole
    return {
        "stops": stops, "copies that are not pinned": len(unpinned), "kernels": len(kernels), "busy": busy,
        "host done after, s": queued, "fine": not stops,
    }  # fmt: skip


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


PARTS: dict[str, Callable[[Place], Cases]] = {
    "correctness": correctness, "steps": steps, "waiting": waiting, "epoch": epoch, "autoattack": autoattack,
    "first-run": first_run,
}  # fmt: skip


# A part, and all of them


def do(name: str, place: Place, until: float) -> None:
    """The cases of a part, one line of JSON each into `OUT/PART.jsonl`; none begins after `until` (of `time.time`)."""
    with (place.out / f"{name}.jsonl").open("w") as lines:

        def write(line: Mapping[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        try:
            cases = PARTS[name](place)
        except Exception as error:  # whatever: the other parts are to go on
            write({"case": "all of it", **failure(error)})
            return
        write({"cases": list(cases), "machine": about(place.device)})
        for case, work in cases.items():
            if time.time() > until:
                write({"case": case, "skipped": "no time left"})
                continue
            begun = time.time()
            try:
                found = {"found": dict(work())}
            except Exception as error:  # likewise
                found = failure(error)
            write({"case": case, **found, "took": round(time.time() - begun, 2)})
            print(f"{name}: {case}: {said(found)}", flush=True)


def failure(error: Exception) -> dict[str, str]:
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return {"error": f"{type(error).__name__}: {text}", "traceback": traceback.format_exc()}


def about(device: torch.device) -> dict[str, Any]:
    here = machine() | {"platform": platform.platform(), "torch": torch.__version__, "rkd": rkd.__version__,
                        "device": str(device)}  # fmt: skip
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        here |= {
            "gpu": card.name, "memory GiB": card.total_memory / 2**30, "multiprocessors": card.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return here


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a part wrote, with the cases it did not come to; and the machine."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [line for line in lines if "case" in line]
    head = next((line for line in lines if "cases" in line), {"cases": [], "machine": {}})
    there = {row["case"] for row in rows}
    rows += [{"case": case, "skipped": "the part was stopped"} for case in head["cases"] if case not in there]
    return rows or [{"case": "all of it", "skipped": "the part was stopped before its first case"}], head["machine"]


def said(row: Mapping[str, Any]) -> str:
    """A case's outcome in words."""
    if "found" not in row:
        return f"failed: {row['error']}" if "error" in row else f"skipped: {row['skipped']}"
    found = dict(row["found"])
    fine = {True: "", False: "**no**, "}[found.pop("fine", True)]
    return fine + ", ".join(f"{name} {shown(value)}" for name, value in found.items() if value is not None)


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def table_of(parts: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """One line a case. Losses and attacks that are as they should be share one."""
    lines = ["| part | case | found |", "|---|---|---|"]
    for part, rows in parts.items():
        many = {name: [row for row in rows if row["case"].startswith(name)] for name in ("loss", "attack ")}
        for name, of in many.items():
            good = [row for row in of if row.get("found", {}).get("fine")]
            if of:
                worst = [row["found"][key] for row in good for key in ("off", "equal") if key in row["found"]]
                spread = f", {min(worst):.3g} to {max(worst):.3g}" if worst else ""
                lines.append(f"| {part} | {name.strip()} | {len(good)} of {len(of)} as on the CPU{spread} |"
                             if part == "correctness" else
                             f"| {part} | {name.strip()} | {len(good)} of {len(of)} without a wait |")  # fmt: skip
            rows = [row for row in rows if row not in good]
        lines += [f"| {part} | {row['case']} | {said(row)} |" for row in rows]
    return lines


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether everything runs, on any machine")
    parser.add_argument("--here", action="store_true", help="all parts in this process; a part is not stopped then")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.until:  # a part's process
        do(arguments.parts[0], place_of(arguments), arguments.until)
        return 0
    end = time.time() + 60 * arguments.minutes
    parts: dict[str, list[dict[str, Any]]] = {}
    here: dict[str, Any] = {}
    for number, part in enumerate(arguments.parts):
        left = end - time.time()
        seconds = left * SHARES[part] / sum(SHARES[name] for name in arguments.parts[number:])
        file = arguments.out / f"{part}.jsonl"
        file.unlink(missing_ok=True)
        if arguments.here:
            do(part, place_of(arguments), time.time() + SOFT * seconds)
        elif left > 0:
            alone(part, arguments, seconds)
        parts[part], machine_then = read(file)
        here = here or machine_then
        (arguments.out / "gpu.json").write_text(json.dumps({"machine": here, "parts": parts}, indent=1))
    lines = [*table_of(parts), "", ", ".join(f"{name} {shown(value)}" for name, value in here.items())]
    (arguments.out / "gpu.md").write_text("\n".join([*lines, ""]))
    print("\n".join(["", *lines]))
    return 0


def place_of(arguments: argparse.Namespace) -> Place:
    return Place(torch.device(arguments.device), arguments.out, SMALL if arguments.small else Size())


def alone(part: str, arguments: argparse.Namespace, seconds: float) -> None:
    """A part in a process of its own, which is stopped when its time is over."""
    command = [sys.executable, __file__, "--parts", part, "--device", arguments.device, "--out", str(arguments.out),
               "--until", str(time.time() + SOFT * seconds), *(["--small"] if arguments.small else [])]  # fmt: skip
    # A cache of its own, so that nothing of an earlier run comes back.
    environment = os.environ | {"RKD_CACHE": str((arguments.out / f"cache-{os.getpid()}").absolute())}
    try:
        done = subprocess.run(command, env=environment, timeout=seconds, check=False)
        if done.returncode:
            print(f"{part}: its process ended with {done.returncode}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped after {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())

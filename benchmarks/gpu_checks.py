"""The parts of benchmarks/gpu.py that say whether a GPU is right, and whether the host waits for it."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_place import Cases, Found, Place, job_of, tf32
from in_turn import make_images
from speed import rkd_run
from torch import Tensor

import rkd
from rkd.api import catalog
from rkd.core.step import AttackPlan
from rkd.core.trainer import advance
from rkd.core.traits import LossTraits, declared, traits_of
from rkd.profiling.bench import wait
from rkd.testing import TinyParts, tiny_batch, tiny_net, tiny_teachers
from rkd.workflow.build import accelerate, build
from rkd.workflow.resolve import resolve

FP32, BF16 = 0.05, 0.5
"""How far the update of two steps may be off the CPU's in float32, as a share of its length. Rounding alone turns the
sign of gradients that are nearly 0, and a search takes a whole step that way: `--device cpu`, where fused copies stand
for another device, shows how far that goes."""
VERDICTS = 0.95
"""The share of images whose verdicts have to be equal."""

SHORT = {"steps": 3, "queries": 6, "targets": 1, "searches": 2, "candidates": 2, "fraction": 0.02}
"""Options of attacks that make them quick, where an attack has them."""


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

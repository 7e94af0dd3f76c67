"""What a training costs: predicted before it starts, from a few dry steps, and measured in full by `rkd bench`. And a
run cut down to try all of it."""

from collections.abc import Mapping
from typing import Any

import torch

from rkd.core.run import Run
from rkd.data.dataset import real_images
from rkd.distributed.ranks import ALONE, Ranks
from rkd.nets.modes import frozen_parameters, running
from rkd.profiling.bench import bench, peak_bytes, peaks
from rkd.registry.catalog import Catalog
from rkd.registry.recipes import Table, merge
from rkd.training.dry_run import StepCost, dry_step
from rkd.training.validation import Validation

from .build import accelerate, build, choose_precision
from .manifest import engine_of
from .plan import Plan, Reporter, Silent
from .preparing.teachers import load_teachers
from .resolve import resolve

TRIED = 32
"""Images of a validation and of an evaluation that are only to be tried."""


def predict(run: Run, plan: Plan, card: StepCost, ranks: Ranks = ALONE) -> tuple[float, int]:
    """Seconds that the training will take with its validations, and its peak memory in bytes (0: unknown).

    By dry steps on as many images as take about a second: of a step on few images most is overhead, and memory grows
    with the images on top of what is taken before the first one (`rkd.profiling.bench.peak_bytes`). Teachers' cached
    answers, extensions and the final evaluation are not in it. The run is left as it was.
    """
    # The whole batch may not fit into memory, and each process does its share of it.
    micro_batch = max(2, -(-run.loader.batch_size // (plan.config.grad_accumulation * ranks.size)))
    samples = min(8, micro_batch)
    before = peak_bytes(run.device)
    seconds = dry_step(run, samples).seconds
    while samples < micro_batch and seconds < 1:
        samples = min(4 * samples, micro_batch)
        seconds = dry_step(run, samples).seconds
    _attack_once(run, max(1, samples * (plan.config.evaluate.batch_size or 1) // micro_batch))
    memory = before + (peak_bytes(run.device) - before) * micro_batch // samples
    seconds = min(seconds, dry_step(run, samples).seconds)
    epoch = sum(map(run.loader.size, range(len(run.loader))))
    images = run.epochs * epoch + _validation_images(run, plan, card)
    return seconds / samples * images / ranks.size, memory


def _attack_once(run: Run, images: int) -> None:
    """A gradient of an attack in an evaluation, whose batches may take more memory than a training's."""
    index = torch.arange(min(images, len(run.loader.split)))
    net = run.student.deployed()
    with running(net, "eval"), frozen_parameters(net):
        x = run.loader.batch(index, 0).x.detach().requires_grad_()
        logits = net(x)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), x, allow_unused=True)


def _validation_images(run: Run, plan: Plan, card: StepCost) -> float:
    """The images of all validations, each counted as the share of a training image's forwards that it takes."""
    validation = run.validate
    if not isinstance(validation, Validation):
        return 0.0
    count = min(validation.limit or len(validation.split), len(validation.split)) * -(-run.epochs // validation.every)
    forwards = 1 + (plan.config.validate_.steps if validation.attack else 0)
    return count * forwards / max(1, card.counts["student"].forwards)


def measure(
    table: Mapping[str, Any], catalog: Catalog, reporter: Reporter | None = None, seconds: float = 10.0
) -> dict[str, Any]:
    """`rkd bench`: time the training step of a configuration. Nothing is prepared, trained to the end or written: a
    teacher that has yet to be prepared is taken untrained, which costs the same. The step is timed with nets as they
    are (`plain_step_seconds`) and with the engine, which no time has a say in. Raises RkdError."""
    reporter = reporter or Silent()
    reporter.doing("reading settings and data")
    plan = resolve(table, catalog)
    for note in plan.notes:
        reporter.message(note)
    teachers = load_teachers(plan, catalog, reporter)
    run = build(plan, catalog, {t.reference.role: t.teacher for t in teachers})
    reporter.doing(f"measuring for about {seconds:g} s")
    dry_step(run)
    dtype = choose_precision(plan.config.precision, run.device) or torch.float32
    machine = peaks(run.device, dtype)
    plain = bench(run, seconds / 2)
    accelerate(run, plan.config.engine)
    result = bench(run, seconds / 2)
    steps = len(run.loader) * plan.config.epochs
    return {
        "student": plan.config.student.model,
        "loss": plan.config.loss.name,
        "data": plan.data.name,
        "teachers": {t.reference.role: t.reference.text for t in teachers},
        "precision": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else str(run.device),
        "threads": torch.get_num_threads(),
        "images": result.images,
        "rounds": result.rounds,
        "engine": engine_of(run),
        "plain_step_seconds": plain.step,
        "step_seconds": result.step,
        "parts_seconds": dict(result.parts),
        "parts_flops": dict(result.flops),
        "flops_per_second": result.rate,
        "machine_flops_per_second": machine,
        "peak_bytes": result.peak_bytes,
        "steps": steps,
        "training_seconds": steps * result.step,
    }


def shortened(table: Mapping[str, Any], catalog: Catalog) -> Table:
    """A run's configuration cut down to an epoch of two batches (or an image of each class, if these are more), a
    validation and an evaluation of 32 images, and as short a training of teachers that are prepared; without trackers.
    All else stays: batch size, attacks, nets. Raises ConfigError."""
    plan = resolve(table, catalog)
    config, data = plan.config, plan.data
    images = int((2 * config.batch_size - 1) / (1 - config.data.validation))
    short: Table = {
        "epochs": 1,
        "data": {"limit_train": min(max(images, len(data.classes)), real_images(data.train))},
        "validate": {"every": 1, "limit": TRIED},
        "evaluate": {"limit": min(TRIED, len(data.test)), "batch_size": TRIED // 2},
        "trackers": dict.fromkeys(config.trackers, False),
    }
    if any(teacher.model and not teacher.weights for teacher in plan.teachers):
        short["preparation_epochs"] = 1
    return merge(table, short)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

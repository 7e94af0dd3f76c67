"""How long a training will take and how much memory, before it starts."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch

from rkd.core.interfaces import Teacher
from rkd.core.random import forked, key
from rkd.core.trainer import Run, update
from rkd.core.types import Batch
from rkd.engine.choose import questions
from rkd.profiling.bench import peak_bytes, wait
from rkd.training.dry_run import CostCard, dry_step, trial_of
from rkd.training.memory import remembering
from rkd.training.teacher_cache import Remembering, RememberingVariants

from .engine import Choices, attach, attach_teachers
from .resolve import Plan

BRIEF = 10.0
"""Seconds of training below which steps as nets are, without engine and memory, tell enough."""
PATIENCE = 4.0
"""Seconds that a step of the trial may take, if it can be had with fewer images."""
LEAST = 32
"""Images of a step in the trial, at least: the engine's ways are for no fewer."""


def predict(run: Run, plan: Plan, card: CostCard, chosen: Choices) -> tuple[float, int]:
    """Seconds that the training will take with its validations, and the most bytes.

    From dry steps on as many images as a second or two allows: a step on few images says little about one on many, of a
    small net's step most is overhead. A longer training's are then taken as it will run: through the engine, whose
    choices come into `chosen` if they were made on whole batches, without the answers of teachers that will be looked
    up, with data and optimiser. Extensions and the final evaluation are not in it. The run is left as it was.

    Memory grows with the images on top of what is there before the first one
    (`rkd.profiling.bench.peak_bytes`); 0 where the
    system does not tell.
    """
    # The whole batch may not fit into memory, and of several processes each does its part.
    wanted = max(2, -(-run.loader.batch_size // (run.grad_accumulation * run.ranks.size)))
    samples = min(8, wanted)
    before = peak_bytes(run.device)
    tried = dry_step(run, samples)
    while samples < wanted and tried.seconds < 1:
        samples = min(4 * samples, wanted)
        tried = dry_step(run, samples)
    memory = before + (peak_bytes(run.device) - before) * wanted // samples
    images = run.epochs * len(run.loader.split) / run.ranks.size
    an_image = _usual(lambda: dry_step(run, samples).seconds, tried.seconds, 0.05 * images / samples) / samples
    if an_image * images >= BRIEF:
        few = wanted if an_image * wanted <= PATIENCE else min(LEAST, wanted)
        an_image = _as_it_will_run(run, plan, card, few, chosen, images)
        if few < wanted:  # on fewer images another way may be faster
            chosen.clear()
    return an_image * (images + _validated(run, card)), memory + _kept(run, plan, card)


def _as_it_will_run(run: Run, plan: Plan, card: CostCard, samples: int, chosen: Choices, images: float) -> float:
    """Seconds an image takes in a step on `samples` of them."""
    trial = trial_of(run)
    trial.grad_accumulation = 1
    trial.scaler = torch.amp.GradScaler(run.device.type, enabled=run.scaler.is_enabled())
    trial.teachers = {role: copy.copy(teacher) for role, teacher in run.teachers.items()}
    attach(trial, plan, chosen)
    attach_teachers(trial, plan, chosen)
    index = torch.arange(samples) % len(run.loader.split)

    def step() -> float:
        wait(run.device)
        started = time.perf_counter()
        with forked(key(run.seed, "dry"), run.device):
            update(trial, run.loader.batch(index, 0))
        wait(run.device)
        return time.perf_counter() - started

    step()  # the engine chooses
    taken = _usual(step, step(), 0.05 * images / samples)
    batch = run.loader.batch(index, 0)
    for role, share in _looked_up(run, plan, card).items():
        taken -= share * _answer(trial.teachers[role], batch)
    return max(taken, 0.0) / samples


def _answer(teacher: Teacher, batch: Batch) -> float:
    """Seconds that a teacher takes over a batch."""

    def ask() -> float:
        wait(batch.x.device)
        started = time.perf_counter()
        with torch.no_grad():
            teacher.logits(batch.x)
        wait(batch.x.device)
        return time.perf_counter() - started

    return min(ask(), ask())


def _looked_up(run: Run, plan: Plan, card: CostCard) -> dict[str, float]:
    """The share of its answers to clean images that each teacher will not have to give."""
    return {role: teacher.again for role, teacher in _with_memory(run, plan, card).items()}


def _kept(run: Run, plan: Plan, card: CostCard) -> int:
    """Bytes of answers in memory."""
    return sum(teacher.in_memory for teacher in _with_memory(run, plan, card).values())


def _with_memory(run: Run, plan: Plan, card: CostCard) -> dict[str, Remembering | RememberingVariants]:
    trial = copy.copy(run)
    trial.loader = copy.copy(run.loader)
    most = int(plan.config.teacher_cache_gib * 2**30)
    teachers = remembering(trial, plan.config.teacher_cache, roles=card.clean, most=most)
    return {r: t for r, t in teachers.items() if isinstance(t, (Remembering, RememberingVariants))}


def _validated(run: Run, card: CostCard) -> float:
    """Images that validations look at, as images of a training step: by the student's forwards on them."""
    plan = run.validation
    if plan is None:
        return 0.0
    count = min(plan.limit or len(plan.split), len(plan.split)) * -(-run.epochs // plan.every)
    asked = 1 + (questions(plan.attack.attack) if plan.attack else 0)
    return count / run.ranks.size * asked / max(1, card.counts["student"].forwards)


def _usual(step: Callable[[], float], taken: float, share: float) -> float:
    """Seconds of the median of a few steps: two seconds of them for a long training, next to nothing (`share` of a
    step's time) for a short one. What else the machine does now, it may do during the training too."""
    started, found = time.perf_counter(), [taken]
    while time.perf_counter() - started < min(2.0, share * taken):
        found.append(step())
    return statistics.median(found)

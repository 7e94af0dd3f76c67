"""The dry step: a run is tried on a few images before it starts, and its cost is counted."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import DataError, Refused
from ..core.objective import total
from ..core.random import forked, key
from ..core.step import Step
from ..core.trainer import Run, run_hooks
from ..core.types import Batch
from ..data.dataset import check_images
from ..distributed.ranks import ALONE
from ..nets.net import NetTeacher, check_logits
from ..storage.serialize import finite
from .cost import Count, counting


@dataclass(frozen=True, slots=True)
class CostCard:
    """Forwards and backwards of each net in one training step, seconds of a dry step on `samples` images.

    `memory`: bytes of a whole training's peak, where somebody has found out. `clean`: the teachers
    that were asked about clean images.
    """

    counts: Mapping[str, Count]
    samples: int
    seconds: float
    memory: int = 0
    clean: frozenset[str] = frozenset()


def trial_of(run: Run) -> Run:
    """A run on copies of everything that a step changes, for this process alone and without extensions."""
    trial = copy.copy(run)
    trial.student = copy.deepcopy(run.student)
    trial.schedulers = copy.deepcopy(run.schedulers)
    trial.knobs = dict(run.knobs)
    trial.ranks = ALONE
    trial.optimizer = torch.optim.SGD(trial.student.net.parameters(), lr=0.0)
    trial.hooks = run_hooks()
    return trial


def dry_step(run: Run, samples: int = 2) -> CostCard:
    """One step on a few images and on copies of everything that changes, to find mistakes before training.

    Raises Refused for a part that was given and never used: a teacher, an attack, a value that a scheduler sets.
    """
    trial = trial_of(run)
    batch = run.loader.batch(torch.arange(min(samples, len(run.loader.split))), 0)
    _check_nets(trial, batch)
    nets: dict[str, nn.Module] = {"student": trial.student.net}
    nets |= {f"teacher {role}": t.net for role, t in run.teachers.items() if isinstance(t, NetTeacher)}
    started = time.perf_counter()
    with forked(key(run.seed, "dry"), run.device), counting(nets) as counts:
        step = trial.step(batch, listen=False)
        loss = total(trial, step)
        if not loss.requires_grad:
            raise Refused("the loss does not depend on the student: no weight would ever move")
        loss.backward()
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    seconds = time.perf_counter() - started
    for view in sorted(step.used.views):
        try:
            check_images(step.image(view))
        except DataError as error:
            raise Refused(f"what makes the view {view!r} is at fault: {error}") from None
    if not bool(loss.isfinite()):
        raise Refused(
            f"the loss is {float(loss.detach()):g} on the first images, before any training{_infinite(trial, batch)}"
        )
    if not finite({str(n): p.grad for n, p in enumerate(trial.student.net.parameters()) if p.grad is not None}):
        raise Refused("a gradient is not finite on the first images, though the loss is: it cannot be trained")
    _check_used(trial, step)
    return CostCard(counts, len(batch), seconds, clean=frozenset(step.used.clean))


def _infinite(run: Run, batch: Batch) -> str:
    """Which nets answer with logits that are not numbers, as the end of a sentence."""
    with torch.no_grad():
        answers = {"the student": run.student.logits({"clean": batch.x}, "eval")["clean"]}
        answers |= {f"the teacher {role!r}": teacher.logits(batch.x) for role, teacher in run.teachers.items()}
    guilty = [who for who, logits in answers.items() if not bool(logits.isfinite().all())]
    if not guilty:
        return ""
    what = f": logits of {' and '.join(guilty)} are NaN or infinite"
    if any(bool(answers[who].isneginf().any()) for who in guilty):
        what += "; a class that a net rules out needs a low finite logit for training (-inf has no divergence)"
    return what


def _check_nets(run: Run, batch: Batch) -> None:
    classes = len(run.data.classes)
    with torch.no_grad():
        logits = run.student.logits({"clean": batch.x[:1]}, "eval")["clean"]
        check_logits(logits, 1, classes, "the student")
        for role, teacher in run.teachers.items():
            check_logits(teacher.logits(batch.x[:1]), 1, classes, f"the teacher {role!r}")


def _check_used(run: Run, step: Step) -> None:
    idle = [f"the teacher {role!r}" for role in run.teachers if role not in step.used.roles]
    idle += [f"the attack that makes the view {view!r}" for view in run.attacks if view not in step.used.views]
    idle += [f"the batch norm of the view {view!r}" for view in run.student.routed if view not in step.used.trained]
    known = ("weight.", "class_weights")
    idle += [
        f"the value {name!r} that a scheduler sets"
        for name in run.knobs
        if not name.startswith(known) and name not in step.used.knobs
    ]
    if idle:
        raise Refused(
            f"{' and '.join(idle)} would never be used by the loss; take it out, or choose a loss that needs it"
        )
    if run.student.routed and step.used.trained <= set(run.student.routed):
        raise Refused(
            f"this loss trains on {', '.join(sorted(step.used.trained))} alone, which auxiliary batch norms serve: the "
            "net's own batch norms, the ones that are deployed, would never be trained; choose a loss with a clean term"
        )

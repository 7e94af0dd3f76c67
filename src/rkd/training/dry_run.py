"""The dry step: a run is tried on a few images before it starts, and its cost is counted in forwards and backwards."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import DataError, Refused
from ..core.hooks import run_hooks
from ..core.objective import loss_terms, scheduled, weighted
from ..core.random import forked, key
from ..core.run import Backward, Checkpoints, Monitor, Processes, Run, TrainState
from ..core.step import Step
from ..core.traits import LossTraits, declared, traits_of
from ..core.types import Batch, View
from ..data.dataset import check_images
from ..nets.net import NetTeacher, check_logits
from ..storage.serialize import finite

FEW = 50
"""Steps of a search that a trial makes."""


@dataclass(slots=True)
class Count:
    """How often a net ran, and how often a gradient ran back through one of those runs."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True, slots=True)
class StepCost:
    """Forwards and backwards of each net in one training step, seconds of a dry step on `samples` images.

    `memory`: bytes of a whole training's peak, where somebody has measured it. `clean`: the teachers that were asked
    about clean images.
    """

    counts: Mapping[str, Count]
    samples: int
    seconds: float
    memory: int = 0
    clean: frozenset[str] = frozenset()


@contextmanager
def counting(nets: Mapping[str, nn.Module]) -> Iterator[dict[str, Count]]:
    """Inside, every run of each net is counted, whoever calls it."""
    counts = {name: Count() for name in nets}
    handles = [net.register_forward_hook(_counter(counts[name])) for name, net in nets.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _counter(count: Count) -> Callable[[nn.Module, object, Tensor], None]:
    def backward(gradient: Tensor) -> None:
        count.backwards += 1

    def forward(module: nn.Module, inputs: object, output: Tensor) -> None:
        count.forwards += 1
        if output.requires_grad:
            output.register_hook(backward)

    return forward


def trial_of(run: Run, backward: Backward | None = None) -> Run:
    """A run of the same parts on copies of everything that a step changes, in this process alone, without extensions
    and collaborators; schedulers listen to it. `backward`: how it computes gradients (None: plainly)."""
    student, companions = copy.deepcopy((run.student, run.companions))
    schedulers = copy.deepcopy(run.schedulers)
    nets = [student.net, *(companion.net for companion in companions.values())]
    return replace(
        run,
        student=student,
        companions=companions,
        schedulers=schedulers,
        optimizer=torch.optim.SGD([weight for net in nets for weight in net.parameters()], lr=0.0),
        hooks=run_hooks(schedulers),
        ranks=Processes(),
        backward=backward or Backward(),
        monitor=Monitor(),
        checkpoints=Checkpoints(),
        validate=None,
        state=TrainState(knobs=dict(run.state.knobs)),
        terms={},
    )


def with_few_steps(run: Run, fewer: View | None = None) -> Run:
    """The run with searches of `FEW` steps where they have more, and half of these in the view `fewer`."""
    attacks = dict(run.attacks)
    for view in long_searches(run):
        attack: Any = run.attacks[view].attack
        short = replace(attack, steps=FEW // 2 if view == fewer else FEW)
        attacks[view] = replace(run.attacks[view], attack=short)
    return replace(run, attacks=attacks)


def long_searches(run: Run) -> dict[View, int]:
    """The steps of searches that have more than `FEW`, by view."""
    found = {view: traits_of(plan.attack).steps for view, plan in run.attacks.items() if is_dataclass(plan.attack)}
    return {view: steps for view, steps in found.items() if isinstance(steps, int) and steps > FEW}


def dry_step(run: Run, samples: int = 2) -> StepCost:
    """One step on a few images and on copies of everything that changes, to find mistakes before training.

    Of a search of more than `FEW` steps it makes these, and half of them once more: the cost of the rest follows.
    Raises Refused for a part that was given and never used: a teacher, an attack, a value that a scheduler sets.
    """
    card = _dry_step(with_few_steps(run), samples)
    if not (long := long_searches(run)):
        return card
    counts = {name: replace(count) for name, count in card.counts.items()}
    for view, steps in long.items():
        half = _dry_step(with_few_steps(run, view), samples).counts
        more = (steps - FEW) / (FEW - FEW // 2)
        for name, count in card.counts.items():
            counts[name].forwards += round(more * (count.forwards - half[name].forwards))
            counts[name].backwards += round(more * (count.backwards - half[name].backwards))
    made, whole = (sum(c.forwards + c.backwards for c in some.values()) for some in (card.counts, counts))
    return replace(card, counts=counts, seconds=card.seconds * whole / made)


def _dry_step(run: Run, samples: int) -> StepCost:
    trial = trial_of(run)
    batch = run.loader.batch(torch.arange(min(samples, len(run.loader.split))), 0)
    _check_nets(trial, batch)
    nets: dict[str, nn.Module] = {"student": trial.student.net}
    nets |= {f"teacher {role}": t.net for role, t in run.teachers.items() if isinstance(t, NetTeacher)}
    nets |= {f"companion {name}": companion.net for name, companion in trial.companions.items()}
    started = time.perf_counter()
    with forked(key(run.seed, "dry"), run.device), counting(nets) as counts:
        step = trial.step(batch)
        terms = loss_terms(trial.loss, step)
        trial.state.knobs.update(scheduled(trial.schedulers, step, terms))
        _check_weights(trial)
        loss = weighted(trial.loss, trial.state.knobs, step, terms)
        if not loss.requires_grad:
            raise Refused("the loss does not depend on the student: no weight would ever move")
        torch.autograd.backward(loss)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    seconds = time.perf_counter() - started
    unbounded = {view for view, derived in declared(run.loss, LossTraits).derived_views.items() if not derived.bounded}
    for view in sorted(step.used.views - unbounded):
        try:
            check_images(step.image(view))
        except DataError as error:
            raise Refused(f"what makes the view {view!r} is at fault: {error}") from None
    if not bool(loss.isfinite()):
        raise Refused(
            f"the loss is {float(loss.detach()):g} on the first images, before any training{_infinite(trial, batch)}"
        )
    weights = [weight for net in trial.nets.values() for weight in net.parameters()]
    if not finite({str(n): p.grad for n, p in enumerate(weights) if p.grad is not None}):
        raise Refused("a gradient is not finite on the first images, though the loss is: it cannot be trained")
    _check_used(trial, step)
    return StepCost(counts, len(batch), seconds, clean=frozenset(step.used.clean))


def _infinite(run: Run, batch: Batch) -> str:
    """Which nets answer with logits that are not numbers, as the end of a sentence."""
    with torch.no_grad():
        logits = {"the student": run.student.logits({"clean": batch.x}, "eval")["clean"]}
        logits |= {f"the teacher {role!r}": teacher.logits(batch.x) for role, teacher in run.teachers.items()}
    guilty = [net for net, values in logits.items() if not bool(values.isfinite().all())]
    if not guilty:
        return ""
    problem = f": logits of {' and '.join(guilty)} are NaN or infinite"
    if any(bool(logits[net].isneginf().any()) for net in guilty):
        problem += "; a class that a net rules out needs a low finite logit for training (-inf has no divergence)"
    return problem


def _check_nets(run: Run, batch: Batch) -> None:
    classes = len(run.data.classes)
    with torch.no_grad():
        logits = run.student.logits({"clean": batch.x[:1]}, "eval")["clean"]
        check_logits(logits, 1, classes, "the student")
        for role, teacher in run.teachers.items():
            check_logits(teacher.logits(batch.x[:1]), 1, classes, f"the teacher {role!r}")
        for name, companion in run.companions.items():
            logits = companion.logits({"clean": batch.x[:1]}, "eval")["clean"]
            check_logits(logits, 1, classes, f"the companion {name!r}")


def _check_weights(run: Run) -> None:
    """Refuse what a scheduler sets and no term or class can be weighed with."""
    classes = len(run.data.classes)
    for name, value in run.state.knobs.items():
        kind = name.partition(".")[0]
        if kind not in ("weight", "class_weights"):
            continue
        given = torch.as_tensor(value) if isinstance(value, (Tensor, Real)) else torch.zeros(0)
        fits = given.numel() == 1 if kind == "weight" else tuple(given.shape) == (classes,)
        if not (fits and bool(given.isfinite().all())):
            wanted = "a finite number" if kind == "weight" else f"a tensor ({classes},) of finite numbers, one a class"
            raise Refused(f"a scheduler sets {name!r} to {value!r}; expected {wanted}")


def _check_used(run: Run, step: Step) -> None:
    traits = declared(run.loss, LossTraits)
    used = step.used.roles | {companion.of for companion in traits.companions.values()}
    idle = [f"the teacher {role!r}" for role in run.teachers if role not in used]
    idle += [f"the companion {name!r}" for name in run.companions if name not in step.used.companions]
    idle += [f"the attack that makes the view {view!r}" for view in run.attacks if view not in step.used.views]
    idle += [f"the batch norm of the view {view!r}" for view in run.student.routed if view not in step.used.trained]
    known = ("weight.", "class_weights")
    idle += [
        f"the value {name!r} that a scheduler sets"
        for name in run.state.knobs
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

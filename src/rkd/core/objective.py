"""From a step's terms to gradients: weights, schedulers, and batches that are computed in several parts.

A batch may be done in parts that fit into memory (`Run.grad_accumulation`). What is a mean over the batch stays one
over the whole batch, so the sum of the parts' gradients is the batch's, but for what mixes samples in the net itself:
batch norm sees a part.

A scheduler sets weights that act in the very step whose losses they come from, and these are known only when every
part has been looked at. So with schedulers each part is looked at twice: once for its terms, without touching the
running statistics, and once for its gradient. Images, searches and teachers' answers are computed once; the price is
one more forward of the student on each of the loss's views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..distributed.ranks import ALONE
from ..training.accumulation import Whole
from . import ops
from .errors import Refused
from .random import forked, key
from .step import Step
from .types import at

if TYPE_CHECKING:
    from .trainer import Run

SMALLEST = 2
"""Samples of a part: of one alone, batch norm has no variance."""


def backward(run: Run, step: Step, again: bool = False) -> Tensor:
    """Add the gradient of a step's loss to the parameters' `.grad`, part by part. Returns the loss, detached.

    Of several processes each adds the gradient, and returns the share of the loss, of its own samples; the core sums
    them. `again`: for a second look at a step, with the weights moved (AWP): the student's answers are computed anew,
    images and teachers' answers are kept, and no scheduler is asked a second time.
    """
    sizes = sizes_of(run, step)
    parts = step.parts(parts_of(min(sizes), run.grad_accumulation))
    if len(parts) == 1:
        if again:
            with step.fresh():
                loss = weighted(run, step, run.loss(step))
                run.scaler.scale(loss).backward()
        else:
            loss = total(run, step)
            run.scaler.scale(loss).backward()
        return loss.detach()
    looked = bool(run.schedulers) and not again
    if looked:
        _look(run, step, parts)
    found: list[dict[str, Tensor]] = []
    losses = []
    for number, part in enumerate(parts):
        with ExitStack() as stack:
            if looked or again:
                stack.enter_context(part.fresh())
            terms = _terms(run, part, number)
            loss = weighted(run, part, terms, sum(sizes))
            run.scaler.scale(loss).backward()
        losses.append(loss.detach())
        found.append({name: term.detach() for name, term in terms.items()})
    if not again:
        run.terms = _everywhere(run, step, _joined(found))
    return torch.stack(losses).sum()


def share_gradients(run: Run, step: Step) -> None:
    """After each process's backward: the gradients, the loss and the running statistics of the whole batch."""
    sizes = sizes_of(run, step)
    run.loss_value = run.ranks.share_step(run.student.net, sizes[run.ranks.rank] / sum(sizes), run.loss_value)


def sizes_of(run: Run, step: Step) -> list[int]:
    """How many samples of the step's batch each process has. The gradient's mean is over their sum."""
    if run.ranks.size == 1:
        return [len(step.batch)]
    sizes = run.ranks.sizes(run.loader.size(run.batch_number))
    if sizes[run.ranks.rank] != len(step.batch):
        raise Refused(
            f"process {run.ranks.rank} has {len(step.batch)} images of batch {run.batch_number}, and should have "
            f"{sizes[run.ranks.rank]}"
        )
    return sizes


def parts_of(samples: int, wanted: int) -> int:
    """In how many parts a batch is done: as many as wanted, as long as none gets fewer than two samples."""
    return max(1, min(wanted, samples // SMALLEST))


def total(run: Run, step: Step) -> Tensor:
    """The loss of a step, a scalar: terms -> schedulers, in order, exactly once -> weights x class weights x mean."""
    terms = checked(run.loss(step), step)
    if run.ranks.size == 1:
        run.knobs.update(_updates(run, step, terms))
        run.terms = {name: term.detach() for name, term in terms.items()}
    else:
        run.terms = _everywhere(run, step, {name: term.detach() for name, term in terms.items()})
        if run.schedulers:
            run.knobs.update(_updates(run, _whole(run, step, [step]), run.terms))
    return weighted(run, step, terms)


def weighted(run: Run, step: Step, terms: Mapping[str, Tensor], samples: int | None = None) -> Tensor:
    """Terms `(B,)` to one number, with the weights as they stand.

    `samples`: of the whole batch, where the step is a part of it; the parts' numbers, and the processes', add up to
    the batch's.
    """
    if samples is None and run.ranks.size > 1:
        samples = sum(sizes_of(run, step))
    losses = []
    for name, term in terms.items():
        for classes in ("class_weights", f"class_weights.{name}"):
            if classes in run.knobs:
                term = term * ops.per_class(run.knobs[classes], step.y)
        mean = term.mean() if samples is None else term.sum() / samples
        losses.append(weight(run, name, step.progress) * mean)
    if not losses:
        raise Refused("the loss returned no terms")
    return torch.stack([loss.reshape(()) for loss in losses]).sum()


def weight(run: Run, term: str, progress: float) -> float | Tensor:
    """The weight of a term now: a scheduler's, else the loss's, else 1."""
    if f"weight.{term}" in run.knobs:
        return run.knobs[f"weight.{term}"]
    return at(getattr(run.loss, "weights", {}).get(term, 1.0), progress)


def checked(terms: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
    """The terms, if each has one value per sample. Raises Refused."""
    for name, term in terms.items():
        if tuple(term.shape) != (len(step.batch),):
            raise Refused(
                f"the loss term {name!r} has the shape {tuple(term.shape)}; expected one value per sample, "
                f"({len(step.batch)},): a loss never averages over the batch itself"
            )
    return terms


def _look(run: Run, step: Step, parts: Sequence[Step]) -> None:
    """Ask the schedulers, who see the batch as one."""
    with _previewing(parts):
        found = []
        for number, part in enumerate(parts):
            terms = _terms(run, part, number)
            found.append({name: term.detach() for name, term in terms.items()})
            part.forget_gradients()
        run.knobs.update(_updates(run, _whole(run, step, parts), _everywhere(run, step, _joined(found))))


def _whole(run: Run, step: Step, parts: Sequence[Step]) -> Whole:
    sizes = sizes_of(run, step)
    return Whole(step, parts, run.ranks if _divided(run, step) else ALONE, sizes)


def _everywhere(run: Run, step: Step, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms `(B,)` of the whole batch, whoever computed them, in the batch's order."""
    if not _divided(run, step):
        return terms
    together = run.ranks.gather(torch.stack(list(terms.values()), 1), sizes_of(run, step))
    return dict(zip(terms, together.unbind(1), strict=True))


def _divided(run: Run, step: Step) -> bool:
    """Whether other processes have other samples of the batch."""
    return run.ranks.size > 1 and run.ranks.shared(run.loader.size(run.batch_number))


@contextmanager
def _previewing(parts: Sequence[Step]) -> Iterator[None]:
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.preview())
        yield


def _terms(run: Run, part: Step, number: int) -> Mapping[str, Tensor]:
    # Each look at a part draws the same numbers from the global generator (dropout).
    with forked(key(part.noise_key, "part", number, run.ranks.rank), part.y.device):
        return checked(run.loss(part), part)


def _joined(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([terms[name] for terms in found]) for name in found[0]}


def _updates(run: Run, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for name, scheduler in run.schedulers.items():
        for knob, value in scheduler.update(step, terms).items():
            if knob in owner:
                raise Refused(f"schedulers {owner[knob]!r} and {name!r} both set {knob!r}; keep one of them")
            for kind in ("weight", "class_weights"):
                term = knob.removeprefix(f"{kind}.")
                if knob.startswith(f"{kind}.") and term not in terms:
                    raise Refused(
                        f"scheduler {name!r} sets {knob!r}, but the loss has no term {term!r} "
                        f"(its terms: {', '.join(terms)})"
                    )
            owner[knob] = name
            updates[knob] = value
    return updates

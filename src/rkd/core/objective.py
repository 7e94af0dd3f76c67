"""From a step's terms to its loss: schedulers, weights, one number.

The order is fixed: the loss's terms `(B,)` -> every scheduler, in order, exactly once -> weights and class weights as
they stand now, in the very step they follow from. Any other value that a scheduler sets is a knob of the next step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import Refused
from .interfaces import Loss, Scheduler
from .step import Step
from .traits import LossTraits, declared
from .types import at


def loss_terms(loss: Loss, step: Step) -> Mapping[str, Tensor]:
    """The terms of a step, by name. Raises Refused unless each has one value per sample, `(B,)`."""
    terms = loss(step)
    if not terms:
        raise Refused("the loss returned no terms")
    for name, term in terms.items():
        if tuple(term.shape) != (len(step.batch),):
            raise Refused(
                f"the loss term {name!r} has the shape {tuple(term.shape)}; expected one value per sample, "
                f"({len(step.batch)},): a loss never averages over the batch itself"
            )
    return terms


def scheduled(schedulers: Mapping[str, Scheduler], step: Step, terms: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the schedulers set after seeing these terms. Raises Refused where two set one value, or for an unknown
    term."""
    values: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for name, scheduler in schedulers.items():
        for knob, value in scheduler.update(step, terms).items():
            if knob in owner:
                raise Refused(f"schedulers {owner[knob]!r} and {name!r} both set {knob!r}; keep one of them")
            kind, _, term = knob.partition(".")
            if kind in ("weight", "class_weights") and term and term not in terms:
                raise Refused(
                    f"scheduler {name!r} sets {knob!r}, but the loss has no term {term!r} "
                    f"(its terms: {', '.join(terms)})"
                )
            owner[knob] = name
            values[knob] = value
    return values


def weighted(
    loss: Loss, knobs: Mapping[str, Any], step: Step, terms: Mapping[str, Tensor], samples: int | None = None
) -> Tensor:
    """Terms `(B,)` to one number, with the weights as they stand.

    `samples`: of the whole batch, where the step is a micro-batch of it: the micro-batches' numbers add up to the
    batch's.
    """
    parts = []
    for name, term in terms.items():
        for classes in ("class_weights", f"class_weights.{name}"):
            if classes in knobs:
                term = term * per_class(knobs[classes], step.y)
        mean = term.mean() if samples is None else term.sum() / samples
        parts.append((weight_of(loss, knobs, name, step.progress) * mean).reshape(()))
    return torch.stack(parts).sum()


def weight_of(loss: Loss, knobs: Mapping[str, Any], term: str, progress: float) -> float | Tensor:
    """The weight of a term now: a scheduler's, else the loss's, else 1."""
    own = declared(loss, LossTraits).weights.get(term, 1.0)
    set_by_scheduler: float | Tensor | None = knobs.get(f"weight.{term}")
    return at(own, progress) if set_by_scheduler is None else set_by_scheduler


def per_class(values: Tensor, y: Tensor) -> Tensor:
    """`values (K,)`, one a class, for each sample: `values[y]`, or the mean under soft labels `y @ values`."""
    return values[y] if y.ndim == 1 else y @ values.to(y.dtype)

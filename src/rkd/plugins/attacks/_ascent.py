"""Gradient ascent with steps of a given length each, which lets samples go once they fool the net."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rkd.plugin import Target, ThreatModel, ops, value_and_grad

from ._early_stop import ActiveSamples, FooledImages, finite_margin, is_check_step, misclassified

Loss = Callable[[int, Tensor, Tensor, Tensor | None], Tensor]
"""The step, counted from 0, logits `(B, K)`, labels, and what the search keeps of each sample: a loss `(B,)`."""


@dataclass
class _Ascent(ActiveSamples):
    """`best` is the image of the lowest margin so far; `kept` belongs to the loss."""

    kept: Tensor | None
    x_adv: Tensor
    best: Tensor
    lead: Tensor


@torch.no_grad()
def ascend(
    x: Tensor, start: Tensor, target: Target, loss: Loss, threat: ThreatModel, lengths: Sequence[float],
    kept: Tensor | None = None,
) -> FooledImages:  # fmt: skip
    """One run from `start`, in the ball, a gradient for each of `lengths` (in units of [0, 1] images). Of samples that
    nothing fooled the image of the lowest margin, scored by it."""
    result = FooledImages(x)
    project = ops.projection(x, threat.eps, threat.norm)
    lead = x.new_full((len(x),), -torch.inf)
    active = _Ascent.of(target, x, start, kept=kept, x_adv=start, best=x, lead=lead)
    for done in range(len(lengths) + 1):
        if done < len(lengths):
            value = partial(_value, loss, done, active.y, active.kept)
            logits, _, gradient = value_and_grad(active.target, active.x_adv, value)
        else:
            logits = active.target.logits(active.x_adv)
        wrong = misclassified(logits, active.y)
        active.fooled = active.fooled | wrong
        active.candidate = ops.where(wrong, active.x_adv, active.candidate)
        lead = -finite_margin(logits, active.y)
        better = lead > active.lead
        active.best, active.lead = ops.where(better, active.x_adv, active.best), torch.where(better, lead, active.lead)
        if done < len(lengths):
            ahead = torch.add(active.x_adv, ops.steepest(gradient, threat.norm), alpha=lengths[done])
            active.x_adv = project(ahead)
        if is_check_step(done) or done == len(lengths):
            count = len(active.position)
            if not result.confirm(active):
                return result
            if len(active.position) < count:
                project = ops.projection(active.x, threat.eps, threat.norm)
    result.images[active.position], result.score[active.position] = active.best, active.lead
    return result


def _value(loss: Loss, done: int, y: Tensor, kept: Tensor | None, logits: Tensor) -> Tensor:
    return loss(done, logits, y, kept)

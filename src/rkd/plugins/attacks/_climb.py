"""The searches of Auto-PGD: one that serves Linf and L2, and that of L1. `apgd.py` says what they do, and why."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rkd.plugin import Target, ThreatModel, ops, value_and_grad

from ._early_stop import ActiveSamples, FooledImages, is_check_step, misclassified

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Logits `(B, K)`, labels, classes aimed at: a loss `(B,)` to be raised."""


@dataclass
class _Climb(ActiveSamples):
    """`best` is the image of the highest loss so far, with that loss and the gradient there."""

    goal: Tensor | None
    x_adv: Tensor
    x_old: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor
    checked_loss: Tensor


@dataclass
class _ClimbL1(ActiveSamples):
    """As `_Climb`. `share`: of all values, those that move in a step; `changed`: how many the best image changed at the
    last checkpoint."""

    goal: Tensor | None
    x_adv: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    changed: Tensor
    share: Tensor


@torch.no_grad()
def climb(
    x: Tensor,
    target: Target,
    loss: Loss,
    threat: ThreatModel,
    *,
    steps: int,
    rho: float = 0.75,
    goal: Tensor | None = None,
    stop: bool = True,
) -> FooledImages:
    """One run of Auto-PGD from one random start, `steps` + 1 gradients long, scored by loss. Without `stop` none counts
    as fooled."""
    result = FooledImages(x)
    project = ops.projection(x, threat.eps, threat.norm)
    x_adv = project(x + ops.random_on_sphere(x, target.noise, threat.eps, threat.norm))
    logits, value, gradient = _look(x_adv, target, loss, target.y, goal)
    active = _Climb.of(
        target, x, x_adv, misclassified(logits, target.y), goal=goal, x_adv=x_adv, x_old=x_adv, gradient=gradient,
        loss=value, best=x_adv, best_gradient=gradient, best_loss=value, checked_loss=value,
        step=torch.full_like(value, 2 * threat.eps), rises=torch.zeros_like(value),
        halved=torch.ones_like(value, dtype=torch.bool),
    )  # fmt: skip
    checkpoint, window = (first := max(int(0.22 * steps), 1)), first
    for done in range(1, steps + 1):
        ahead = project(
            torch.addcmul(active.x_adv, ops.per_image(active.step, x), ops.steepest(active.gradient, threat.norm))
        )
        if done > 1:
            ahead = project(ahead.mul_(0.75).add_(active.x_adv, alpha=0.5).sub_(active.x_old, alpha=0.25))
        active.x_old, active.x_adv = active.x_adv, ahead
        before = active.loss
        logits, active.loss, active.gradient = _look(ahead, active.target, loss, active.y, active.goal)

        wrong = misclassified(logits, active.y)
        active.fooled = active.fooled | wrong
        active.candidate = ops.where(wrong, ahead, active.candidate)
        better = active.loss > active.best_loss
        active.best = ops.where(better, ahead, active.best)
        active.best_gradient = ops.where(better, active.gradient, active.best_gradient)
        active.best_loss = torch.where(better, active.loss, active.best_loss)
        active.rises = active.rises + (active.loss > before)

        if done == checkpoint:
            _check_step(active, rho * window)
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            checkpoint += window
        if stop and (is_check_step(done) or done == steps):
            count = len(active.position)
            if not result.confirm(active):
                return result
            if len(active.position) < count:
                project = ops.projection(active.x, threat.eps, threat.norm)
    result.images[active.position], result.score[active.position] = active.best, active.best_loss
    return result


@torch.no_grad()
def climb_l1(
    x: Tensor,
    target: Target,
    loss: Loss,
    threat: ThreatModel,
    *,
    steps: int,
    rho: float = 0.75,
    goal: Tensor | None = None,
    stop: bool = True,
) -> FooledImages:
    """As `climb`, in L1: three searches in balls that shrink to the threat's. `rho` has no say."""
    start = x + target.noise.normal(x.shape[1:])
    first = int(0.3 * steps)
    for times, count in ((3, first), (2, first)):
        if count:
            run = _climb_l1(x, target, loss, times * threat.eps, start, steps=count, goal=goal, stop=False)
            start = run.images
    return _climb_l1(x, target, loss, threat.eps, start, steps=steps - 2 * first, goal=goal, stop=stop)


def _climb_l1(
    x: Tensor, target: Target, loss: Loss, eps: float, start: Tensor, *, steps: int, goal: Tensor | None, stop: bool
) -> FooledImages:
    """One search in one ball, `steps` + 1 gradients long, from the projection of `start`."""
    result = FooledImages(x)
    values = x[0].numel()
    project = ops.projection(x, eps, "L1")
    x_adv = project(start.clone())
    logits, value, gradient = _look(x_adv, target, loss, target.y, goal)
    changed = ops.image_norm(x_adv - x, "L0-values").to(value)
    active = _ClimbL1.of(
        target, x, x_adv, misclassified(logits, target.y), goal=goal, x_adv=x_adv, gradient=gradient, best=x_adv,
        best_gradient=gradient, best_loss=value, step=torch.full_like(value, eps), changed=changed,
        share=changed / (1.5 * values),
    )  # fmt: skip
    window = max(int(0.04 * steps), 1)
    for done in range(1, steps + 1):
        way = ops.sparse_steepest(ops.scaled(active.gradient), active.share)
        ahead = project(torch.addcmul(active.x_adv, ops.per_image(active.step, x), way))
        logits, value, active.gradient = _look(ahead, active.target, loss, active.y, active.goal)
        active.x_adv = ahead
        wrong = misclassified(logits, active.y)
        active.fooled = active.fooled | wrong
        active.candidate = ops.where(wrong, ahead, active.candidate)
        better = value > active.best_loss
        active.best = ops.where(better, ahead, active.best)
        active.best_gradient = ops.where(better, active.gradient, active.best_gradient)
        active.best_loss = torch.where(better, value, active.best_loss)

        if not done % window:
            changed = ops.image_norm(active.best - active.x, "L0-values").to(value)
            sparser = changed < 0.95 * active.changed
            active.step = torch.where(sparser, eps, (active.step / 1.5).clamp_(min=eps / 10))
            active.x_adv = ops.where(sparser, active.best, active.x_adv)
            active.gradient = ops.where(sparser, active.best_gradient, active.gradient)
            active.share, active.changed = changed / (1.5 * values), changed
        if stop and (is_check_step(done) or done == steps):
            count = len(active.position)
            if not result.confirm(active):
                return result
            if len(active.position) < count:
                project = ops.projection(active.x, eps, "L1")
    result.images[active.position], result.score[active.position] = active.best, active.best_loss
    return result


def _look(x: Tensor, target: Target, loss: Loss, y: Tensor, goal: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and loss at `x`, and the loss's gradient by x, from one forward and one backward."""
    return value_and_grad(target, x, lambda logits: loss(logits, y, goal))


def _check_step(active: _Climb, enough: float) -> None:
    """At a checkpoint: halve the step where it is too large, and go back to the best image there."""
    stuck = ~active.halved & (active.checked_loss >= active.best_loss)
    halve = (active.rises <= enough) | stuck
    active.step = torch.where(halve, active.step / 2, active.step)
    active.x_adv = ops.where(halve, active.best, active.x_adv)
    active.gradient = ops.where(halve, active.best_gradient, active.gradient)
    active.halved, active.checked_loss = halve, active.best_loss
    active.rises = torch.zeros_like(active.rises)

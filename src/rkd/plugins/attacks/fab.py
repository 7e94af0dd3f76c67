"""Fast Adaptive Boundary attack, targeted: walks along the boundary to one class after another, close to the image.

With f = z_t - z_y the margin of the class t over the label, each step takes f for linear:

    d_1, d_2 = the shortest ways from x_i and from x to the plane f(x_i) + ∇f(x_i) · (x' - x_i) = 0 within [0, 1]
    share    = min(‖d_1‖ / (‖d_1‖ + ‖d_2‖), alpha_max)
    x_{i+1}  = clamp((1 - share) (x_i + eta d_1) + share (x + eta d_2), 0, 1)

Where the net is fooled, the walk goes back towards x: x_{i+1} = x + beta (x_{i+1} - x). Norms and ways are those of
the ball's norm. It looks for the nearest image that fools the net and knows no radius; counted are those that lie
inside the ball.

References: croce2020minimally

The attack needs logits, not a loss: the objective of the run, `target.score`, is not asked. Classes are tried in the
order of their logits at x, and a sample leaves once the net is fooled inside the ball, confirmed by a second forward. A
sample that the net gets wrong as it is, or that nothing fools, is returned unchanged. Random restarts begin at half
the radius; the first start is x itself.

The way to the plane: with a_j >= 0 the weight of a pixel and r_j the room it has, the length L of the way solves

    sum_j a_j min(L, r_j) = |f|          a = |w|, r = room (Linf)       a = w², r = room / |w| (L2)

In L1 the pixels of the largest |w| take all their room, one after another, until |f| is spent.

The left side is concave and piecewise linear, so that Newton's steps from 0 come from below and end at the solution
exactly, after a few sums over the pixels of all samples at once; the authors sort the pixels and bisect.

Where the user allows reduced precision, ∇f is taken in it, and so is f where the walk has gone back. Near the
boundary f is small, and with its last digits wrong the walk would end beside the boundary, not on it: so whether the
net is fooled, and f where it is not, come from the exact logits that are asked for anyway, and what the other f was
off by there is added to it from then on. Far outside the ball nothing is at stake, and there all of it is in reduced
precision: the walk is exact where it has come within NEAR radii of x.

Deviations from the authors' code (pyautoattack 0.2.0):

- There each target takes all its steps before the radius is checked. The result is the same.
- The gradient is scaled by its largest entry, and no pixel is left out; in L2 it drops those with |w| < 1e-8, which
  for a saturated net is all of them.
- With K < 10 classes the K - 1 others are tried; there it stops with an error.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, ThreatModel, hookimpl, ops, value_and_grad

from ._early_stop import (
    MOST_TARGETS,
    ActiveSamples,
    FooledImages,
    begin,
    is_check_step,
    misclassified,
    note_fewer_targets,
    target_classes,
    targeted_runs,
)
from ._options import CONVEX, attacker, check_search

NEAR = 1.5
"""How many radii from x the net is asked exactly, where reduced precision is allowed."""
_NEWTON = 6
"""Newton's steps where asking for their end would make the host wait. On images 2 to 5 are exact; where the plane can
hardly be reached at all, a way may end just before it."""


@dataclass
class FabT:
    """Fast Adaptive Boundary attack towards up to 9 classes in turn (Croce and Hein 2020).

    `eps` in units of [0, 1] images; None: the data set's. `targets`: how many classes, in the order of their logits.
    `alpha_max`: the largest share of the way from x; `eta`: overshooting; `beta`: the way back after a success.
    """

    eps: Schedule | None = None
    steps: int = 100
    targets: int = MOST_TARGETS
    norm: Norm | None = None
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, confirms=True, seeks_nearest=True)

    def __post_init__(self) -> None:
        check_search(
            self.eps, self.norm, self.mode, knows=CONVEX, steps=self.steps, restarts=self.restarts, targets=self.targets
        )
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max is a share, from 0 to 1, got {self.alpha_max:g}")
        if not self.eta >= 1:
            raise ValueError(f"eta must be at least 1, or the walk ends before the boundary, got {self.eta:g}")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, or the walk never comes back, got {self.beta:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. For each target `steps` gradients and a
        forward more."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=CONVEX)
        result = begin(x, target)
        classes = target_classes(x, target, self.targets)
        for remaining, selected, goal, restart in targeted_runs(result, target, classes, self.restarts, "fab-t"):
            run = self._walk(x[remaining], selected, threat, goal, random=restart > 0)
            result.add(remaining[run.fooled], run.images[run.fooled])
        return result.images

    def notes(self, classes: int) -> list[str]:
        """What is done differently for so few classes."""
        return note_fewer_targets("fab-t", classes, self.targets)

    @torch.no_grad()
    def _walk(self, x: Tensor, target: Target, threat: ThreatModel, goal: Tensor, random: bool) -> FooledImages:
        """One walk towards the classes `goal`."""
        result = FooledImages(x)
        start = (x + ops.random_on_sphere(x, target.noise, threat.eps, threat.norm) / 2).clamp_(0, 1) if random else x
        margin = _margin_over(target.logits(start), goal, target.y)
        active = _Walk.of(
            target, x, x, goal=goal, x_adv=start, margin=margin, known=torch.ones_like(margin, dtype=torch.bool),
            off=torch.zeros_like(margin),
        )  # fmt: skip
        for done in range(1, self.steps + 1):
            margin, gradient = _look(active)
            points = torch.stack((active.x_adv.flatten(1), active.x.flatten(1)))
            w = gradient.flatten(1)
            heights = torch.stack((margin, margin + torch.linalg.vecdot(w, points[1] - points[0])))
            ways = to_plane(points, w, heights, threat.norm)
            length = ops.image_norm(ways, threat.norm, start_dim=2).clamp_(min=1e-8)
            share = (length[0] / length.sum(0)).clamp_(max=self.alpha_max)
            points = points.add_(ways, alpha=self.eta)
            ahead = points[0].lerp_(points[1], share.unsqueeze(1)).clamp_(0, 1).view_as(active.x)

            away = ahead - active.x
            far = ops.image_norm(away, threat.norm)
            logits, exact = _judge(active.target, ahead, far <= NEAR * threat.eps)
            wrong = misclassified(logits, active.y)
            active.margin, active.known = _margin_over(logits, active.goal, active.y), exact & ~wrong
            counts = wrong & (far <= threat.eps)
            active.candidate = ops.where(counts, ahead, active.candidate)
            active.fooled = active.fooled | counts
            active.x_adv = ops.where(wrong, active.x + self.beta * away, ahead)
            if (is_check_step(done) or done == self.steps) and not result.confirm(active):
                break
        return result


@dataclass
class _Walk(ActiveSamples):
    """`margin`: f at the last image whose f is exact; `known`: whether that is `x_adv`. `off`: by how much the search's
    f was too small where both were known last."""

    goal: Tensor
    x_adv: Tensor
    margin: Tensor
    known: Tensor
    off: Tensor


def _margin_over(logits: Tensor, goal: Tensor, y: Tensor) -> Tensor:
    """f: the goal's margin over the label."""
    goals, labels = logits.float().gather(1, torch.stack((goal, ops.hard(y)), dim=1)).unbind(1)
    return goals - labels


def _judge(target: Target, x: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of `x`, and which of them are exact, `(B,)` bool: those at `near`, or all where reduced precision is
    not allowed, or would make the host wait."""
    fast = target.low_precision("forward")
    if fast is target or x.device.type != "cpu" or bool(near.all()):
        return target.logits(x), torch.ones_like(near)
    parts, logits = [(~near).nonzero().squeeze(1), near.nonzero().squeeze(1)], []
    for one, rows in zip((fast, target), parts, strict=True):
        if len(rows):
            logits.append(one.select(rows).logits(x[rows]))
    return torch.cat(logits)[torch.cat(parts).argsort()], near


def _look(active: _Walk) -> tuple[Tensor, Tensor]:
    """f at `x_adv`, and its gradient by the image."""

    target = active.target.low_precision("gradient")
    _, value, gradient = value_and_grad(
        target, active.x_adv, lambda logits: _margin_over(logits, active.goal, active.y)
    )
    active.off = torch.where(active.known, (active.margin - value).nan_to_num(0, 0, 0), active.off)
    # One pixel without a number, and the walk would never come back from there.
    return torch.where(active.known, active.margin, value + active.off), gradient.nan_to_num(0, 0, 0)


def to_plane(points: Tensor, w: Tensor, heights: Tensor, norm: Norm) -> Tensor:
    """The shortest ways, in `norm`, from `points (k, B, n)` to where a function of slope `w (B, n)` is 0.

    `heights (k, B)`: its values at the points. The ways stay within [0, 1]; where that is too narrow to reach the
    plane, they go as far as there is room.
    """
    largest = w.abs().amax(1).clamp_(min=ops.TINY)
    heights = (heights / largest).unsqueeze(2)
    w = w / largest.unsqueeze(1)
    uphill = w * -heights.sign()
    # The far end is 1 uphill and 0 downhill: sums and products of whole tensors, for masks are slow on CPUs.
    far = torch.gt(uphill, 0, out=torch.empty_like(uphill))
    room = far.sub_(points).abs_()
    weight = w.abs_()
    if norm == "L1":
        order = weight.argsort(dim=1, descending=True, stable=True).expand_as(room)
        gain = (weight * room).gather(2, order)
        before = gain.cumsum(2) - gain
        taken = ((heights.abs() - before) / gain.clamp(min=ops.TINY)).clamp_(0, 1)
        return torch.zeros_like(room).scatter_(2, order, taken).mul_(room).mul_(uphill.sign_())
    if norm == "L2":
        room /= weight.clamp(min=1e-30)
        weight = weight.square_()
    length = _fill(weight, room, heights.abs())
    # Linf: each pixel moves by the length, L2: by the length times its slope.
    return torch.minimum(room, length, out=room).mul_(uphill.sign_() if norm == "Linf" else uphill)


def _fill(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The length L `(k, B, 1)` with sum_j weight_j min(L, room_j) = need; infinite where there is not enough room."""
    length = need / weight.sum(1, keepdim=True).clamp_(min=ops.TINY)
    on_host = length.device.type == "cpu"
    spare = torch.empty_like(room)
    for _ in range(50 if on_host else _NEWTON):
        filled = torch.linalg.vecdot(torch.minimum(room, length, out=spare), weight).unsqueeze(2)
        slope = torch.linalg.vecdot(torch.gt(room, length, out=spare), weight).unsqueeze(2)
        lacking = (need - filled).clamp_(min=0)
        if on_host and bool(((lacking <= 1e-6 * need) | (slope == 0)).all()):
            return torch.where(slope > 0, length, torch.inf)
        length = length.addcdiv(lacking, slope.clamp_(min=ops.TINY))  # without a slope there is no room left: infinite
    return length


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"fab-t": FabT}

"""DeepFool: straight to the nearest boundary of a net that is taken for linear, again and again until it is crossed.

    f_k = z_k - z_y,  w_k = ∇f_k        l = argmin_k |f_k| / ‖w_k‖_q
    r  <- r + |f_l| / ‖w_l‖_2² * w_l                     L2   (q = 2)
    r  <- r + |f_l| / ‖w_l‖_1 * sign(w_l)                Linf (q = 1)
    x' =  clamp(x + (1 + overshoot) r, 0, 1),   r <- (x' - x) / (1 + overshoot)

It finds a near boundary in few steps and knows no radius. With `bounded` (default) its image is shrunk into the ball
of the data set, so that its result can be compared with those of other attacks; where shrinking leaves an image that
fools the net less than x itself, x is returned. Without it the image on the boundary is returned, however far away:
the mean distance is the paper's measure of robustness.

References: moosavi2016deepfool

The attack needs logits, not a loss: the objective of the run, `target.score`, is not asked. The label takes the place
of the net's own first answer; a sample that the net gets wrong as it is, is returned unchanged.

As the authors' code and unlike the paper: gradients are taken at x + (1 + overshoot) r, each way is made
1e-4 longer, and only the `candidates` likeliest classes at x are looked at. Deviation from both: images are clamped to
[0, 1] in each step, and r goes on from the clamped image. What the clamp cuts off would otherwise stay in r, and the
steps after it would be taken for ways that no image can go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ._early_stop import ActiveSamples, begin, is_check_step, misclassified, target_classes
from ._options import BOXES, attacker, check_search


@dataclass
class DeepFool:
    """DeepFool: to the nearest boundary of the linearised net, in L2 or Linf (Moosavi-Dezfooli et al. 2016).

    `eps` in units of [0, 1] images; None: the data set's. `bounded`: bring the image into that ball.
    `candidates`: how many classes to look at, the label among them.
    """

    eps: Schedule | None = None
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    norm: Norm | None = None
    bounded: bool = True
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, seeks_nearest=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=BOXES, steps=self.steps)
        if not self.overshoot >= 0:
            raise ValueError(f"overshoot must be at least 0, got {self.overshoot:g}")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, the label and another class, got {self.candidates}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1]; inside the ball around `x` if `bounded`. K - 1 gradients a step."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=BOXES)
        x_adv = self._search(x, target, threat.norm)
        if not self.bounded:
            return x_adv
        near = ops.projection(x, threat.eps, threat.norm)(x_adv.clone())
        with torch.no_grad():
            worse = ops.margin(target.logits(near), target.y) <= ops.margin(target.logits(x), target.y)
        return ops.where(worse, near, x)

    @torch.no_grad()
    def _search(self, x: Tensor, target: Target, norm: Norm) -> Tensor:
        result = begin(x, target)
        remaining = result.remaining()
        if not len(remaining):
            return result.images
        target, x = target.select(remaining), x[remaining]
        classes = target_classes(x, target, self.candidates - 1)
        active = _Walk.of(target, x, x, position=remaining, classes=classes, r=torch.zeros_like(x))
        for done in range(1, self.steps + 1):
            active.r = ops.where(active.fooled, active.r, active.r + self._step(active, norm))
            active.candidate = (active.x + (1 + self.overshoot) * active.r).clamp_(0, 1)
            active.r = (active.candidate - active.x) / (1 + self.overshoot)
            active.fooled = misclassified(active.target.logits(active.candidate), active.y)
            if (is_check_step(done) or done == self.steps) and not result.confirm(active):
                return result.images
        result.images[active.position] = active.candidate  # not fooled, but on the way
        return result.images

    def _step(self, active: _Walk, norm: Norm) -> Tensor:
        """The way to the nearest boundary of the linearised net."""
        x = active.candidate.detach().requires_grad_()
        nearest = x.new_full((len(x),), torch.inf)
        way = torch.zeros_like(x)
        with torch.enable_grad():
            logits = active.target.logits(x).float()
            margins = logits.gather(1, active.classes) - logits.gather(1, ops.hard(active.y).unsqueeze(1))
            if not margins.requires_grad:  # a net whose logits do not depend on the images
                return way
        count = margins.shape[1]
        for place in range(count):
            with torch.enable_grad():
                margin = margins[:, place].sum()
            (w,) = torch.autograd.grad(margin, x, retain_graph=place < count - 1)
            # Saturated nets have gradients whose squares are 0 in float32: scale by the largest entry.
            largest = w.flatten(1).abs().amax(1).clamp_(min=ops.TINY)
            w = w / ops.per_image(largest, w)
            far = margins[:, place].detach().abs() / largest
            if norm == "L2":
                length = w.flatten(1).square().sum(1).sqrt()
                w = w / ops.per_image(length.clamp(min=ops.TINY), w)
            else:
                length = w.flatten(1).abs().sum(1)
                w = w.sign()
            far = torch.where(length > 0, far / length.clamp(min=ops.TINY), torch.inf)
            nearer = far < nearest
            way = ops.where(nearer, w, way)
            nearest = torch.where(nearer, far, nearest)
        # A way longer than the images are wide is a gradient of nothing but rounding.
        return way * ops.per_image((nearest + 1e-4).clamp_(max=1e4), way)


@dataclass
class _Walk(ActiveSamples):
    classes: Tensor
    r: Tensor


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"deepfool": DeepFool}

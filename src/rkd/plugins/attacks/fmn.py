"""Fast minimum norm (FMN): the nearest image in any norm, by a step uphill and a projection onto a ball whose radius
follows the boundary.

    m         = max_{k != y} z_k(x + d) - z_y(x + d),     w = ∇m
    radius   <- (‖d‖ + |m| / ‖w‖_dual) (1 + gamma_0)     while the net has not been fooled yet: just beyond the boundary
                radius (1 + gamma)       if it has been, and x + d does not fool it
                min(radius (1 - gamma), the smallest distance so far)     if x + d fools it
    d        <- P_radius(d + step w / ‖w‖_2)
    x + d    <- clamp(x + d, 0, 1)

Step and gamma fall by a cosine, from 1 to 0.01 and from 0.05 to 0.001. The dual norm is L1 for Linf, L2 for L2 and the
largest entry for L1. One algorithm serves the ball's norm, whichever it is; the nearest image that fooled the net is
kept. In L0, which has no slope, the radius is a number of pixels (or values) that begins at 1, and moves by the share
gamma and at least by 1. In L2 the change is brought onto the surface of the ball, also from within.

References: pintor2021fast

It looks for the nearest image and knows no radius: one search gives the accuracy at every radius (`--curve`). With
`bounded` (default) that image is returned where it lies inside the ball, and x itself otherwise; without it however far
away it is. A sample that the net gets wrong as it is, is returned unchanged. The objective of the run, `target.score`,
is not asked. Searches begin at x, not at an image of another class.

Deviation from the paper and its authors' code: there the first radius leads to where the boundary should be, without
the factor 1 + gamma_0. Rounding, or a boundary that bends away, then leaves a sample just short of it for all steps (in
L2 on a net of MNIST, every fifth).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops, value_and_grad

from ._nearest import Nearest, annealed, farthest, search_nearest
from ._options import attacker, check_search

_DUAL: dict[Norm, float] = {"Linf": 1, "L2": 2, "L1": math.inf}


@dataclass
class Fmn:
    """FMN: the nearest image that fools the net, in the ball's norm (Pintor et al. 2021).

    `step`: the first step, in units of [0, 1] images, the last one being a hundredth of it; `gamma`: by which share the
    radius moves at first. `bounded`: return what lies inside the ball alone; `eps` in units of [0, 1] images, None: the
    data set's.
    """

    steps: int = 300
    step: float = 1.0
    gamma: float = 0.05
    bounded: bool = True
    eps: Schedule | None = None
    norm: Norm | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(
        objective="margin", own_objective=True, confirms=True, seeks_nearest=True, any_radius=True
    )

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, steps=self.steps)
        if not self.step > 0:
            raise ValueError(f"step must be greater than 0, got {self.step:g}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma is a share of the radius, above 0 and below 1, got {self.gamma:g}")

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1]. `steps` forwards, and a gradient less, for each image."""
        threat = attacker(target, self.eps, self.norm)
        return search_nearest(x.detach(), target, threat, self.bounded, self._search)

    def _search(self, x: Tensor, target: Target, norm: Norm) -> Nearest:
        near, most = Nearest(x, target, norm, self.steps), farthest(x, norm)
        radius = torch.ones_like(most) if norm in ops.COUNTS else torch.full_like(most, torch.inf)
        x_adv = x
        for done in range(self.steps - 1):
            gamma = annealed(self.gamma, self.gamma / 50, done, self.steps)
            logits, lead, gradient = value_and_grad(target, x_adv, lambda logits: -ops.margin(logits, target.y))
            fooled, far = near.note(x_adv, logits)
            gradient = gradient.nan_to_num(0, 0, 0)
            if norm in ops.COUNTS:
                smaller = torch.minimum(radius - 1, (radius * (1 - gamma)).floor())
                larger = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
            else:
                slope = torch.linalg.vector_norm(gradient.flatten(1), ord=_DUAL[norm], dim=1).clamp_(min=1e-12)
                beyond = (far + lead.abs() / slope) * (1 + self.gamma)
                smaller = radius * (1 - gamma)
                larger = torch.where(near.distance.isfinite(), radius * (1 + gamma), beyond)
            radius = torch.where(fooled, torch.minimum(smaller, near.distance), larger)
            radius = torch.minimum(radius, most).clamp_(min=0)
            step = annealed(self.step, self.step / 100, done, self.steps)
            x_adv = _brought_in(x, ops.steepest(gradient, "L2").mul_(step).add_(x_adv), radius, norm)
        near.note(x_adv, target.logits(x_adv))
        return near


def _brought_in(x: Tensor, x_adv: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The images inside [0, 1] and the balls of `radius (B,)`; in L2 from the surface of the ball."""
    if norm != "L2":
        return ops.projection(x, radius, norm)(x_adv)
    delta = x_adv.sub_(x)
    delta *= ops.per_image(radius / ops.image_norm(delta, "L2").clamp_(min=ops.TINY), x)
    return delta.add_(x).clamp_(0, 1)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"fmn": Fmn}

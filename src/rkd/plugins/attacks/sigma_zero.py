"""Sigma-zero: the fewest pixels that must change, by gradient descent on a smooth count of them.

    minimise  max(z_y - max_{k != y} z_k, 0) + 1/n sum_i d_i² / (d_i² + sigma)
    g   = its gradient, with 1 as its largest entry
    d  <- Adam's step along -g, then clamped to x + d in [0, 1]
    tau <- tau + 0.01 lr if x + d fooled the net, else tau - 0.01 lr
    d_i <- 0 where |d_i| < tau

For a small sigma, 1e-3, the sum counts the d_i that are not 0, and still has a slope. The learning rate falls by a
cosine from `lr` to a tenth of it. The image with the fewest changes that fooled the net is kept.

References: cina2025sigma

It looks for the nearest image in L0 and knows no radius: one search gives the accuracy at every radius (`--curve`).
With `bounded` (default) that image is returned where no more pixels changed than the ball allows, and x itself
otherwise. A sample that the net gets wrong as it is, is returned unchanged. The objective of the run, `target.score`,
is not asked.

In a ball of L0 it counts pixels: d_i² is the sum over the channels, and |d_i| the largest of them. In one of L0-values,
and in the authors' code, it counts single values; images of one channel make no difference. Other balls are refused:
what changes few values changes them as far as they go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ._nearest import Nearest, annealed, search_nearest
from ._options import attacker, check_search

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
"""Adam's."""
_PACE = 0.01
"""By how many learning rates tau moves in a step."""


@dataclass
class SigmaZero:
    """Sigma-zero: the fewest pixels (L0) or values (L0-values) that must change (Cinà et al. 2025).

    `lr`: of the first step; `sigma`: how sharply changes are counted; `tau`: below which change one is taken back, at
    the start. `bounded`: return what lies inside the ball alone; `eps`: a number of pixels, None: the ball's.
    """

    steps: int = 1000
    lr: float = 1.0
    sigma: float = 1e-3
    tau: float = 0.3
    bounded: bool = True
    eps: Schedule | None = None
    norm: Norm | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(
        objective="margin", own_objective=True, confirms=True, seeks_nearest=True, any_radius=True
    )

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=ops.COUNTS, steps=self.steps)
        for name in ("lr", "sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name):g}")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau is a change of a value, from 0 to 1, got {self.tau:g}")

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1]. `steps` forwards, and a gradient less, for each image."""
        threat = attacker(target, self.eps, self.norm, knows=ops.COUNTS)
        return search_nearest(x.detach(), target, threat, self.bounded, self._search)

    def _search(self, x: Tensor, target: Target, norm: Norm) -> Nearest:
        near, pixels = Nearest(x, target, norm, self.steps), norm == "L0" and x.ndim > 2
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        tau = x.new_full((len(x),), self.tau)
        x_adv, lr = x, self.lr
        for done in range(1, self.steps):
            logits, gradient = self._look(x, x_adv, target, pixels)
            fooled, _ = near.note(x_adv, logits)
            gradient = ops.scaled(gradient)
            mean.lerp_(gradient, 1 - _BETA_1)
            square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
            root = square.sqrt().div_((1 - _BETA_2**done) ** 0.5).add_(_EPS)
            x_adv = torch.addcdiv(x_adv, mean, root, value=-lr / (1 - _BETA_1**done)).clamp_(0, 1)
            lr = annealed(self.lr, self.lr / 10, done - 1, self.steps)
            tau = (tau + torch.where(fooled, _PACE * lr, -_PACE * lr)).clamp_(0, 1)
            change = (x_adv - x).abs_()
            if pixels:
                change = change.amax(1, keepdim=True)
            x_adv = torch.where(change < ops.per_image(tau, x), x, x_adv)
        near.note(x_adv, target.logits(x_adv))
        return near

    def _look(self, x: Tensor, x_adv: Tensor, target: Target, pixels: bool) -> tuple[Tensor, Tensor]:
        """The logits, and the gradient of the loss by the image."""
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = target.logits(x_adv)
            lead = ops.margin(logits, target.y).clamp(min=0).sum()
        gradient = torch.zeros_like(x)
        if lead.requires_grad:  # else a net whose logits do not depend on the images
            (gradient,) = torch.autograd.grad(lead, x_adv)
        delta = x_adv.detach() - x
        size = delta.square()
        if pixels:
            size = size.sum(1, keepdim=True)
        # Of d² / (d² + sigma), by d.
        count = size[0].numel()
        slope = delta.mul_(2 * self.sigma / count).div_((size + self.sigma).square_())
        return logits.detach(), gradient.nan_to_num(0, 0, 0).add_(slope)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"sigma-zero": SigmaZero}

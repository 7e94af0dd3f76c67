"""Decoupled direction and norm (DDN): the nearest image in L2, by a step uphill and a radius that breathes.

    g         = ∇ (log sum_{k != y} exp z_k(x + d) - z_y(x + d)),  of length 1
    radius   <- radius (1 - gamma) if x + d fools the net, else radius (1 + gamma)
    d        <- radius (d + step g) / ‖d + step g‖_2
    x + d    <- clamp(x + d, 0, 1), on wish rounded to `levels` values

The direction follows the gradient alone, the length the net's answer alone: no constant weighs one against the other,
as in Carlini and Wagner's attack, and some hundred steps do what takes that one thousands. The step falls from 1 to
0.01 by a cosine. The nearest image that fooled the net is kept.

References: rony2019decoupling

It looks for the nearest image in L2 and knows no radius: one search gives the accuracy at every radius (`--curve`).
With `bounded` (default) that image is returned where it lies inside the data set's ball, and x itself otherwise; in a
ball of another norm that is a weak attack. Without it the image is returned however far away it is. A sample that the
net gets wrong as it is, is returned unchanged. The objective of the run, `target.score`, is not asked.

Deviations from the authors' code:

- There g is the gradient of cross-entropy. That is a multiple of this one, by 1 - softmax(z)_y, which is 0 in float32
  where the net is very sure; the direction is the same and never lost.
- There a gradient of zero is replaced by a random direction. Here such a sample stays where it is.
- There images are rounded to 256 values unless told; here none are (`levels = 256` does it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops, value_and_grad

from ._nearest import Nearest, annealed, farthest, search_nearest
from ._options import attacker, check_search


@dataclass
class Ddn:
    """DDN: the nearest image that fools the net in L2, direction and length decoupled (Rony et al. 2019).

    `gamma`: by which share the radius moves in a step; `start`: the first radius. `levels`: round images to so many
    values, 256 for 8 bits; 0: none. `bounded`: return what lies inside the ball alone; `eps` in units of [0, 1] images,
    None: the data set's.
    """

    steps: int = 300
    gamma: float = 0.05
    start: float = 1.0
    levels: int = 0
    bounded: bool = True
    eps: Schedule | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(
        objective="margin", own_objective=True, confirms=True, seeks_nearest=True, any_radius=True, measure="L2"
    )

    def __post_init__(self) -> None:
        check_search(self.eps, None, self.mode, steps=self.steps)
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma is a share of the radius, above 0 and below 1, got {self.gamma:g}")
        if not self.start > 0:
            raise ValueError(f"start is a radius in L2, above 0, got {self.start:g}")
        if self.levels and not 2 <= self.levels <= 2**16:
            raise ValueError(f"levels must be 0 (none) or from 2 to 65,536, got {self.levels}")

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1]. `steps` forwards, and a gradient less, for each image."""
        return search_nearest(x.detach(), target, attacker(target, self.eps), self.bounded, self._search)

    def _search(self, x: Tensor, target: Target, norm: Norm) -> Nearest:
        """In L2, whatever the ball's `norm`."""
        near, most = Nearest(x, target, "L2", self.steps), farthest(x, "L2")
        radius = x.new_full((len(x),), self.start)
        x_adv = x
        for done in range(self.steps - 1):
            logits, _, gradient = value_and_grad(target, x_adv, lambda logits: _rise(logits, target.y))
            fooled, _ = near.note(x_adv, logits)
            radius = torch.minimum(radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma), most)
            delta = ops.steepest(gradient, "L2").mul_(annealed(1.0, 0.01, done, self.steps)).add_(x_adv).sub_(x)
            delta *= ops.per_image(radius / ops.image_norm(delta, "L2").clamp_(min=ops.TINY), x)
            x_adv = delta.add_(x).clamp_(0, 1)
            if self.levels:
                x_adv = x_adv.mul_(self.levels - 1).round_().div_(self.levels - 1)
        near.note(x_adv, target.logits(x_adv))
        return near


def _rise(logits: Tensor, y: Tensor) -> Tensor:
    """log sum_{k != y} exp z_k - z_y, `(B,)`: its gradient is that of cross-entropy, and does not vanish."""
    logits, labels = logits.float(), ops.hard(y).unsqueeze(1)
    return logits.scatter(1, labels, -torch.inf).logsumexp(1) - logits.gather(1, labels).squeeze(1)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"ddn": Ddn}

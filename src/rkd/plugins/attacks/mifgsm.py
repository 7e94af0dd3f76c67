"""Momentum iterative FGSM (MI-FGSM): gradient steps along a running sum of gradients, for images that also fool others.

    g_{i+1} = mu * g_i + ∇score(x_i) / ‖∇score(x_i)‖_1
    x_{i+1} = P(x_i + step_size * sign(g_{i+1}))          L2: along g_{i+1} of length one

The momentum carries the search over poor local maxima, which differ from net to net. P projects onto the ball and
into [0, 1]; the start is x, the result the last iterate.

References: dong2018boosting

Settings are the paper's: 10 steps of eps / 10, mu = 1. Deviation: the gradient is divided by its largest entry before
its L1 length is taken, which underflows for saturated nets otherwise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rkd.plugin import Mode, Norm, Schedule, Target, at, hookimpl, ops

from ._options import BOXES, attacker, check_positive, check_search


@dataclass
class MiFgsm:
    """Momentum iterative FGSM: 10 steps of eps/10, made to transfer between nets (Dong et al. 2018).

    `eps` and `step_size` in units of [0, 1] images; None: the data set's radius, and eps / steps. `momentum` is mu.
    """

    eps: Schedule | None = None
    step_size: Schedule | None = None
    steps: int = 10
    momentum: float = 1.0
    norm: Norm | None = None
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=BOXES, steps=self.steps)
        check_positive("step_size", self.step_size)
        if not self.momentum >= 0:
            raise ValueError(f"momentum must be at least 0, got {self.momentum:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `steps` gradients."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=BOXES)
        step = threat.eps / self.steps if self.step_size is None else at(self.step_size, target.progress)
        project = ops.projection(x, threat.eps, threat.norm)
        x_adv, sum_ = x, torch.zeros_like(x)
        for _ in range(self.steps):
            _, gradient = target.gradient(x_adv)
            gradient = ops.scaled(gradient)
            length = gradient.flatten(1).abs().sum(1).clamp_(min=ops.TINY)
            sum_ = torch.add(gradient / ops.per_image(length, x), sum_, alpha=self.momentum)
            x_adv = project(torch.add(x_adv, ops.steepest(sum_, threat.norm), alpha=step))
        return x_adv


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"mifgsm": MiFgsm}

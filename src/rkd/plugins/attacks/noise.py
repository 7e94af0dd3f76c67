"""Uniform noise in the ball: no attack at all, and the floor under every other.

    x_adv = clamp(x + noise, 0, 1),     noise uniform in the ball

A net that noise alone brings down is not robust in any sense; an attack that does no better than noise has not found
its way. Of several draws each sample keeps one that fools the net, if any does.

References: madry2018towards

The noise is the random start of that paper's PGD, without the steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ._early_stop import misclassified
from ._options import attacker, check_search


@dataclass
class UniformNoise:
    """Uniform noise in the ball: the floor under every attack.

    `eps` in units of [0, 1] images; None: the data set's. `draws`: how many tries a sample has.
    """

    eps: Schedule | None = None
    draws: int = 1
    norm: Norm | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(own_objective=True, black_box=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, draws=self.draws)

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. No gradient; a forward a draw but the last."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm)
        x_adv = (x + ops.uniform_in_ball(x, target.noise, threat.eps, threat.norm)).clamp_(0, 1)
        for _ in range(self.draws - 1):
            with torch.no_grad():
                done = misclassified(target.logits(x_adv), target.y)
            again = (x + ops.uniform_in_ball(x, target.noise, threat.eps, threat.norm)).clamp_(0, 1)
            x_adv = ops.where(done, x_adv, again)
        return x_adv


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"noise": UniformNoise}

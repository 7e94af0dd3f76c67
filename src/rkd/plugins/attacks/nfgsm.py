"""N-FGSM: one gradient at an image full of noise, for training at the price of one extra forward and backward.

    x_0   = clamp(x + noise, 0, 1),                   noise uniform in the ball of radius k eps, k = 2
    x_adv = clamp(x_0 + eps * sign(grad score(x_0)), 0, 1)          L2: along the gradient of length one

Nothing brings x_adv back into the ball of radius eps: its distance from x is up to (k + 1) eps. Strong noise without
clipping is what keeps training with one step from catastrophic overfitting, where FGSM's robustness collapses within
an epoch. So this is an attack to train with: an evaluation shows it, and leaves it out of the worst case, since it
declares that it keeps to no ball.

References: dejorge2022make

Settings are the paper's for CIFAR: k = 2, and a step of eps. Its code leaves the net in train mode during the
attack, as one-step methods do (`mode = "train"`); the default here is eval, as everywhere. On SVHN it raises eps from
0 over the first five epochs: with 30 of them `eps = "ramp(0, 8/255, until=1/6)"`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Schedule, Target, hookimpl, ops

from ._options import attacker, check_search


@dataclass
class NFgsm:
    """N-FGSM: one step from strong noise, unclipped, for cheap training (de Jorge et al., 2022).

    `eps` in units of [0, 1] images, the length of the step; None: the data set's. `noise`: its radius in units of eps.
    """

    eps: Schedule | None = None
    noise: float = 2.0
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(bounded=False)

    def __post_init__(self) -> None:
        check_search(self.eps, None, self.mode)
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be at least 0 times eps, got {self.noise:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], up to `noise` + 1 radii from `x`. One gradient."""
        threat = attacker(target, self.eps)
        noise = ops.uniform_in_ball(x, target.noise, self.noise * threat.eps, threat.norm)
        start = (x.detach() + noise).clamp_(0, 1)
        _, gradient = target.gradient(start)
        return torch.add(start, ops.steepest(gradient, threat.norm), alpha=threat.eps).clamp_(0, 1)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"n-fgsm": NFgsm}

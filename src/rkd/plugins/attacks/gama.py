"""GAMA-PGD: the margin of probabilities, at first guided by how far they are from those of the clean image.

    loss_i  = max_{k != y} p_k - p_y + w_i ‖p(x) - p(x_i)‖²,   p = softmax of the logits
    w_i     = 50 (1 - i / 25)  for i < 25 of 100 steps, then 0
    x_{i+1} = P(x_i + s_i * direction)

P projects onto the ball and into [0, 1]; the direction is the gradient's sign (Linf) or the gradient of length one
(L2). s is 2 eps, a tenth of it after 60 % of the steps, a hundredth after 85 %. The start is a random corner of the
Linf ball, a random point of the L2 sphere.

References: sriramanan2020guided

What is done here beside the paper, which has Linf alone: L2; other numbers of steps keep these shares; the start is
brought into [0, 1]; samples leave once they fool the net, and of the others the image of the lowest margin is kept.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ._ascent import ascend
from ._early_stop import begin, runs
from ._options import BOXES, attacker, check_search


@dataclass
class Gama:
    """GAMA-PGD: a margin of probabilities, guided at first by the clean image's (Sriramanan et al. 2020).

    `eps` in units of [0, 1] images; None: the data set's. `guide`: the first weight of the distance from the clean
    image's probabilities.
    """

    eps: Schedule | None = None
    steps: int = 100
    guide: float = 50.0
    norm: Norm | None = None
    restarts: int = 1
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, confirms=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=BOXES, steps=self.steps, restarts=self.restarts)
        if not self.guide >= 0:
            raise ValueError(f"guide must be 0 or more, got {self.guide:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `steps` gradients a restart."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=BOXES)
        lengths = [2 * threat.eps * _fall(i / self.steps) for i in range(self.steps)]
        result = begin(x, target)
        fast = target.low_precision("gradient")
        with torch.no_grad():
            clean = target.logits(x).float().softmax(1)
        for remaining, selected, _ in runs(result, fast, self.restarts, "gama"):
            images = x[remaining]
            away = selected.noise.normal(x.shape[1:])
            corner = away.sign() if threat.norm == "Linf" else ops.steepest(away, threat.norm)
            project = ops.projection(images, threat.eps, threat.norm)
            start = project(images + threat.eps * corner)
            run = ascend(images, start, selected, self._loss, threat, lengths, clean[remaining])
            result.add_better(remaining, run.images, run.fooled, run.score)
        return result.images

    def _loss(self, done: int, logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
        assert clean is not None
        p = logits.float().softmax(1)
        weight = self.guide * max(1 - 4 * done / self.steps, 0.0)
        return -ops.margin(p, y) + weight * (p - clean).square().sum(1)


def _fall(share: float) -> float:
    """The step as a part of the first one, after that share of the steps."""
    return 1.0 if share < 0.6 else 0.1 if share < 0.85 else 0.01


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"gama": Gama}

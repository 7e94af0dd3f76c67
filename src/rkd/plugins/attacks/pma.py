"""PMA: the margin of probabilities, after half a search on one of the two probabilities alone.

    loss_0 = p_y,   then for the first half of the steps   -p_y (run 1) or max_{k != y} p_k (run 2)
    and for the second half   max_{k != y} p_k - p_y,      p = softmax of the logits
    x_{i+1} = P(x_i + s_i * direction),   s_i = eps (1 + cos(pi (k - 1) / (N / 2)))

with k = i in the first half and up to its end, i - N / 2 after it. P projects onto the ball and into [0, 1]; the
direction is the gradient's sign (Linf) or the gradient of length one (L2). Each run starts uniform in the ball. The
first step, up the right class's probability, only leaves the start.

`pma+` is `pma`, and `apgd-t` on what it leaves standing.

Both screen: they come near AutoAttack's number for a fraction of its queries, and are no substitute for it. They take
gradients of probabilities alone, so that a saturated net escapes `pma`.

References: xie2024towards

What is done here beside the authors' code, which has Linf alone: L2; the start is brought into [0, 1]; samples leave
where the net itself confirms that they fool it, and of the others the image of the lowest margin is kept.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ._ascent import ascend
from ._early_stop import MOST_TARGETS, begin, note_fewer_targets, runs
from ._options import BOXES, attacker, check_search
from .apgd import ApgdT
from .autoattack import spend

_RUNS = 2


@dataclass
class Pma:
    """Screening attack on the margin of probabilities, in two runs: PMA (Xie et al. 2024).

    `eps` in units of [0, 1] images; None: the data set's. `steps` of each of the two runs of a restart.
    """

    eps: Schedule | None = None
    steps: int = 100
    norm: Norm | None = None
    restarts: int = 1
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, confirms=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=BOXES, steps=self.steps, restarts=self.restarts)

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. 2 `steps` gradients a restart."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=BOXES)
        lengths = _lengths(threat.eps, self.steps)
        result = begin(x, target)
        fast = target.low_precision("gradient")
        for remaining, selected, run in runs(result, fast, _RUNS * self.restarts, "pma"):
            images = x[remaining]
            noise = ops.uniform_in_ball(images, selected.noise, threat.eps, threat.norm)
            start = ops.projection(images, threat.eps, threat.norm)(images + noise)
            loss = self._up if run % _RUNS else self._down
            found = ascend(images, start, selected, loss, threat, lengths)
            result.add_better(remaining, found.images, found.fooled, found.score)
        return result.images

    def _down(self, done: int, logits: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """The run that first lowers the probability of the right class."""
        right, other = _probabilities(logits, y)
        return right if done == 0 else -right if done < self.steps / 2 else other - right

    def _up(self, done: int, logits: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """The run that first raises the probability of the best other class."""
        right, other = _probabilities(logits, y)
        return right if done == 0 else other if done < self.steps / 2 else other - right

    def notes(self, classes: int) -> list[str]:
        """What its number is worth."""
        return ["pma: a screening attack: its number is an upper bound, to be confirmed by autoattack"]


@dataclass
class PmaPlus:
    """Screening attack: PMA, and apgd-t on what it leaves standing (Xie et al. 2024).

    `eps` in units of [0, 1] images; None: the data set's. `steps` of each run of pma and each target of apgd-t.
    """

    eps: Schedule | None = None
    steps: int = 100
    targets: int = MOST_TARGETS
    norm: Norm | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, confirms=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=BOXES, steps=self.steps, targets=self.targets)

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`."""
        x = x.detach()
        result = begin(x, target)
        for attack in (
            Pma(self.eps, self.steps, self.norm, mode=self.mode),
            ApgdT(self.eps, self.steps, self.targets, self.norm, mode=self.mode),
        ):
            spend(attack, result, result.remaining(), x, target, type(attack).__name__)
        return result.images

    def notes(self, classes: int) -> list[str]:
        """What its number is worth, and what is done differently for so few classes."""
        worth = "pma+: a screening attack: its number is an upper bound, to be confirmed by autoattack"
        return [worth, *note_fewer_targets("pma+", classes, self.targets)]


def _probabilities(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of the label, and that of the best other class: `(B,)` each."""
    p, label = logits.float().softmax(1), ops.hard(y).unsqueeze(1)
    return p.gather(1, label).squeeze(1), p.scatter(1, label, -1.0).amax(1)


def _lengths(eps: float, steps: int) -> list[float]:
    """The step of each of the two halves: a half cosine from 2 eps to 0."""
    half = max(steps / 2, 1)
    return [
        eps * (1 + math.cos(math.pi * ((i if i <= half else i - half) - 1) / half)) for i in range(steps)
    ]  # fmt: skip


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"pma": Pma, "pma+": PmaPlus}

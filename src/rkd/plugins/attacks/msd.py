"""Searches in several balls at once, to train against their union.

    step       x_{i+1} = argmax_p score(P_p(x_i + s_p v_p))       v_p: the steepest step in the norm of ball p
    max        argmax_p score(x_p),                               x_p: the image that PGD finds in ball p
    random     x_p, of each image a ball p by chance

`step` is multi steepest descent (MSD, Maini et al., 2020): each image goes in each step the way of whichever ball
raises its score the most. `max` is the worst of several attacks (Tramèr and Boneh, 2019). Their AVG is the mean of the
losses in all balls: `random` has it as its expectation. P_p projects onto ball p and into [0, 1].

References: maini2020adversarial, tramer2019adversarial

No ball of the union holds the others, so that this attack keeps to no single one: an evaluation shows it and leaves it
out of the worst case. Steps are those of `pgd` in each norm, a quarter of the radius unless told (`share`); the start
is x itself. Deviation from the authors of MSD: in L1 the largest hundredth of the slopes share a step as in `pgd`,
there it is a number of them by chance.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Target, ThreatModel, hookimpl, ops

from ._options import BOXES, check_search, check_word
from .pgd import search, step_lengths

How = Literal["step", "max", "random"]


@dataclass
class Msd:
    """Multi steepest descent: PGD in several balls at once, to train against their union (Maini et al. 2020).

    `balls`: NORM:RADIUS by commas. `how`: the best ball in each step, the maximum of a search in each (max), or
    a search in one by chance (random). `share`: a step as a share of the radius.
    """

    balls: str = "Linf:8/255,L2:0.5,L1:12"
    steps: int = 10
    how: How = "step"
    share: float = 0.25
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(bounded=False)

    def __post_init__(self) -> None:
        check_search(None, None, self.mode, steps=self.steps)
        check_word("how", self.how, *get_args(How))
        if not 0 < self.share <= 10:
            raise ValueError(f"share is a share of the radius, above 0 and at most 10, got {self.share:g}")
        self._threats()

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], each inside one of the balls around `x`. For P balls: `step` takes
        a gradient and P forwards a step, `max` P gradients a step and P forwards, `random` P gradients a step."""
        x = x.detach()
        threats = self._threats()
        if self.how == "step":
            return self._together(x, target, threats)
        found = [search(x, target, threat, self.steps) for threat in threats]
        if self.how == "max":
            return best_of(found, target)
        place = (target.noise.uniform(()) * len(found)).long().clamp_(max=len(found) - 1)
        result = found[0]
        for number, images in enumerate(found[1:], 1):
            result = ops.where(place == number, images, result)
        return result

    def _together(self, x: Tensor, target: Target, threats: list[ThreatModel]) -> Tensor:
        projections = [ops.projection(x, threat.eps, threat.norm) for threat in threats]
        lengths = [step_lengths(threat, self.steps) for threat in threats]
        x_adv = x
        for number in range(self.steps):
            _, gradient = target.gradient(x_adv)
            ways = []
            for threat, project, length in zip(threats, projections, lengths, strict=True):
                slope = gradient if threat.norm in BOXES else ops.inward(gradient, x_adv)
                ways.append(project(torch.add(x_adv, ops.steepest(slope, threat.norm), alpha=length[number])))
            x_adv = best_of(ways, target)
        return x_adv

    def _threats(self) -> list[ThreatModel]:
        """The balls, with steps of `share`. Raises ValueError."""
        threats = []
        for text in self.balls.split(","):
            name, colon, radius = text.strip().partition(":")
            norm: Norm | None = next((norm for norm in get_args(Norm) if norm == name), None)
            try:
                eps = float(Fraction(radius))
            except (ValueError, ZeroDivisionError, OverflowError):
                eps = 0.0
            if norm is None or not colon or not eps > 0:
                known = ", ".join(get_args(Norm))
                raise ValueError(
                    f"balls are NORM:RADIUS by commas, such as Linf:8/255,L1:12, with {known}; got {text!r}"
                )
            check_search(eps, norm, self.mode)
            threats.append(ThreatModel(norm, eps, self.share * eps))
        if len({threat.norm for threat in threats}) < max(len(threats), 2):
            raise ValueError(f"balls must be two or more, of different norms, got {self.balls!r}; for one take pgd")
        return threats


def best_of(images: list[Tensor], target: Target) -> Tensor:
    """Of several images for each sample the one of the highest score; one without a score yields to others."""
    best, most = images[0], None
    for found in images:
        with torch.no_grad():
            score = target.score(found).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        best = found if most is None else ops.where(score > most, found, best)
        most = score if most is None else torch.maximum(score, most)
    return best


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"msd": Msd}

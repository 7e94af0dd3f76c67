"""The margin attack in the Linf ball: PGD that raises Carlini and Wagner's f6 instead of cross-entropy.

    maximise  min(max_{k != y} z_k(x') - z_y(x'), kappa)     over the ball around x

The margin of the logits z keeps a gradient where the softmax is saturated and cross-entropy has none left
(defensive distillation). kappa is an option of the objective `margin` (50 unless told, as in the scripts of
this literature).

References: carlini2017towards

Deviations: Carlini and Wagner minimise the distance plus c * f6 with Adam, in tanh space, for each target
class. What the distillation literature calls CW_inf, and this file provides, is an untargeted search in a
fixed ball. Scripts differ in the number of steps and the start: CIARD 30 steps from x itself (`cw-30`
repeats it exactly), IAD 30 and Fair-ARD 20 steps from a uniform start. Here: 30 steps, and PGD's start and
steps otherwise.
"""

from dataclasses import dataclass
from typing import ClassVar

from rkd.plugin import AttackTraits, hookimpl

from .pgd import Pgd


@dataclass
class Cw(Pgd):
    """Margin attack: PGD on the logits' margin, 30 steps (after Carlini and Wagner 2017)."""

    steps: int = 30

    traits: ClassVar = AttackTraits(objective="margin")


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"cw": Cw}

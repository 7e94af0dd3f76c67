"""The fast gradient sign method (FGSM): one step of the whole radius along the gradient's sign.

It finds the worst image of the ball where the score is linear in the pixels, for the price of one gradient.

    x_adv = clamp(x + eps * sign(grad_x score(x)), 0, 1)          (L2: along the gradient of length one)

In L1 the values of the largest slopes go to 0 or 1 one after another until the radius is spent, in L0 the pixels that
gain the most by it.

References: goodfellow2015explaining

What official scripts do: CIARD's `attack_eval.py` takes cross-entropy, eps 8/255 and no random start, as
the paper does; that is the default here. Fair-ARD's `eval.py` starts from 0.001 * randn (`start =
"gaussian"`). IAD's `basic_eval.py` starts from the uniform distribution (`start = "uniform"`), though it
prints that it does not. Both then project onto the ball.
"""

from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from rkd.plugin import Mode, Schedule, Target, hookimpl, ops

from ._options import BOXES, attacker, check_search, check_word
from .pgd import Start, search


@dataclass
class Fgsm:
    """Fast gradient sign method: one step of size eps (Goodfellow et al. 2015).

    `eps` in units of [0, 1] images; None: the data set's. `start`: none, gaussian (0.001 * randn) or uniform.
    """

    eps: Schedule | None = None
    start: Start = "none"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        check_search(self.eps, None, self.mode)
        check_word("start", self.start, *get_args(Start))

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. One gradient."""
        threat = attacker(target, self.eps)
        if threat.norm in BOXES:
            return search(x, target, replace(threat, step_size=threat.eps), steps=1, start=self.start)
        x = x.detach()
        begin = search(x, target, threat, steps=0, start=self.start)
        return ops.linear_optimum(x, target.gradient(begin)[1], threat.eps, threat.norm)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"fgsm": Fgsm}

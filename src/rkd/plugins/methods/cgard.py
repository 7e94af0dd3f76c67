"""CGARD: student and teacher each get the image of their own where they differ most, and the student learns from both.

    L = alpha KL(T(x'') ‖ S(x')) + (1 - alpha) KL(T(x') ‖ S(x'))
    x', x'' = argmax KL(S(x') ‖ T(x'')) + KL(T(x'') ‖ S(x'))      subject to CE(T(x''), y) <= CE(T(x), y)

Terms `guide` and `adv`, each `(B,)`. alpha = 0.3, T = 1; 300 epochs as RSLAD's. x' is the view `adv`, x'' the view
`adv-teacher`: the attack `pgd-joint` makes both, and asks the teacher in each of its steps as AdaAD's does.

The name stands for a paper of 2026 of which rkd's authors know a summary of these formulas, alpha, the schedule and the
published table; its title and authors are not in it, and no code was found, so that nothing is cited. All else is
chosen here: the symmetric divergence is a sum of both directions, both images lie in the ball of the data set, RSLAD's
ten steps and start, and how x'' keeps the constraint (see `pgd-joint`).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Cgard:
    """CGARD (2026): joint search of an image for the student and one for the teacher, who teaches on both.

    `alpha`: weight of the teacher's answer to its own image.
    """

    alpha: Schedule = 0.3
    reduction: Reduction = "batchmean"

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd-joint"}

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"guide": self.alpha, "adv": lambda progress: 1 - at(self.alpha, progress)}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        on_adv, on_own = step.teacher(view="adv"), step.teacher(view="adv-teacher")  # the search of `adv` makes both
        adv = step.student("adv")
        return {
            "guide": ops.kl(adv, on_own, reduction=self.reduction),
            "adv": ops.kl(adv, on_adv, reduction=self.reduction),
        }


@hookimpl
def rkd_losses():
    return {"cgard": Cgard}

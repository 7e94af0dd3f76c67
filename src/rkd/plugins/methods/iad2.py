"""IAD-II: AKD2 whose robust teacher is weighted by its confidence in the label; the rest goes to the student's own
answer on the clean image.

    L = (1 - a_r - a_c) CE(S(x'), y) + a_r [a KD(T_robust) + (1 - a) T² KL(S(x) ‖ S(x'))] + a_c KD(T_clean)
    KD(F) = T² KL(softmax(F(x') / T) ‖ softmax(S(x') / T)),    x' = argmax CE(S(x'), y)

    a = p_y(x')^beta with p the robust teacher's softmax; a = 1 before `begin`, as in `iad`

The terms of `akd2`, and `self (B,)`, through both sides of which gradients flow. Missing teachers are prepared as for
`akd2`.

beta = 0.1; `begin` is epoch 40 of 200. As in the code, T² multiplies `self`, too, which no temperature softens. The
code forwards the clean batch from `begin` on; here it runs from the start, with a weight of 0 till then.

References: zhu2022reliable
"""

from dataclasses import dataclass

from torch import Tensor

from rkd.plugin import Schedule, Step, at, hookimpl, ops

from .akd2 import Akd2
from .iad import check_confidence, confidence


@dataclass
class Iad2(Akd2):
    """IAD-II (Zhu et al., 2022): AKD2, the robust teacher weighted by confidence, and the student's clean answer."""

    beta: Schedule = 0.1
    begin: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_confidence(self.beta, self.begin)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {**super().weights, "self": self.robust}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        share = confidence(step, self.beta, self.begin, "robust")
        step.teacher("clean", "adv")  # before the student's graph
        adv, clean = step.students("adv", "clean")
        terms = super().__call__(step)
        own = at(self.T, step.progress) ** 2 * ops.kl(adv, clean, reduction=self.reduction)
        return {**terms, "robust": share * terms["robust"], "self": (1 - share) * own}


@hookimpl
def rkd_losses():
    return {"iad2": Iad2}

"""LTD: adversarial training whose labels are a teacher's, at a low temperature of the teacher alone.

    ltd       L = CE(S(x), p) + beta KL(S(x) ‖ S(x')),    x' = argmax KL(S(x) ‖ S(x'))       TRADES
    ltd-at    L = CE(S(x'), p),                           x' = argmax CE(S(x'), y)           adversarial training

    p = softmax(T(x) / T),    CE(z, p) = -sum_k p_k log softmax(z)_k

Terms `clean` and `robust`, or `adv`, each `(B,)`. The student's temperature is 1 in training and in use, and so nothing
scales its logits, which is what hides gradients in defensive distillation. Unlike ARD's 30 the teacher's is low, and it
is tuned: how low is a matter of the teacher's logits.

The authors' training code is not public, and neither is each of their settings. Choices of this project are T = 5, beta
= 6 (TRADES'), a teacher trained on clean images, and that the search is that of the method beneath. Public are nets of
theirs, WRN-34-10 and WRN-34-20, among the best teachers of small students: `--teacher robust=wrn34-20@FILE`.

References: chen2021ltd, zhang2019theoretically, madry2018towards
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Ltd:
    """LTD (Chen and Lee, 2021) over TRADES: labels of a clean teacher at a low temperature."""

    T: Schedule = 5.0
    beta: Schedule = 6.0

    roles: ClassVar = ("clean",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-student"}

    def __post_init__(self) -> None:
        check_range("T", self.T, 1e-3)
        check_range("beta", self.beta, 0)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"robust": self.beta}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        p = labels(step, self.T)
        step.image("adv")  # the attack comes before the batch moves the running statistics
        clean, adv = step.students("clean", "adv")
        return {"clean": ops.cross_entropy(clean, p), "robust": ops.kl(adv, clean)}


@dataclass
class LtdAt:
    """LTD (Chen and Lee, 2021) over adversarial training: labels of a clean teacher at a low temperature."""

    T: Schedule = 5.0

    roles: ClassVar = ("clean",)
    defaults: ClassVar = {"attack": "pgd", "attack.start": "uniform", "objective": "ce"}

    def __post_init__(self) -> None:
        check_range("T", self.T, 1e-3)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        p = labels(step, self.T)
        return {"adv": ops.cross_entropy(step.student("adv"), p)}


def labels(step: Step, T: Schedule) -> Tensor:
    """The teacher's probabilities on clean images, `(B, K)`."""
    return (step.teacher().float() / at(T, step.progress)).softmax(1)


@hookimpl
def rkd_losses():
    return {"ltd": Ltd, "ltd-at": LtdAt}

"""AdaAD: search and loss compare student and teacher on the same image; the search differentiates the teacher too.

    L = alpha KL(T(x') ‖ S(x')) + (1 - alpha) KL(T(x) ‖ S(x)),    x' = argmax KL(T(x') ‖ S(x'))

Terms `adv` and `clean`, each `(B,)`. Every step of the search runs the teacher forward and backward: several times
the cost of RSLAD.

The official script sets alpha = 1 and yet forwards the clean batch, before the attacked one; its KL is averaged over
classes on CIFAR-10 (`reduction="mean"`) and is the true one on CIFAR-100. Its strongest results train with eps 16/255
and steps of 4/255 (`--set attack.eps=16/255`).

References: huang2023boosting
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class AdaAD:
    """AdaAD (Huang et al., 2023): match the teacher at each image, searching through both nets."""

    alpha: Schedule = 1.0
    reduction: Reduction = "batchmean"

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-adaptive"}

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"adv": self.alpha, "clean": lambda progress: 1 - at(self.alpha, progress)}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        on_adv, on_clean = step.teacher(view="adv"), step.teacher(view="clean")  # before the student's graph
        clean, adv = step.students("clean", "adv")
        return {
            "adv": ops.kl(adv, on_adv, reduction=self.reduction),
            "clean": ops.kl(clean, on_clean, reduction=self.reduction),
        }


@hookimpl
def rkd_losses():
    return {"adaad": AdaAD}

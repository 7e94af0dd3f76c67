"""LBGAT: the student's logits on attacked images follow those of a guide, which learns clean images at the same time.

    L = |S(x') - G(x)|² / K + CE(G(x), y) + beta KL(S(x) ‖ S(x')),    x' = argmax KL(S(x) ‖ S(x'))

Terms `mse` (the mean over the K logits), `guide` and `robust`, each `(B,)`. G is the companion `guide`, which the first
term moves as well: neither side is held fixed. It has the student's architecture, unless `companions.guide.model` names
another one: the authors' guide is a ResNet-18 beside WRN-34-10. After the training it is dropped.

The paper has both beta = 0 and beta = 6, the default here as in its script. With 0 clean images still go through the
student, as there, for the running statistics. The search is TRADES', with eps 0.031 and steps of 0.007.

What the code does differently: it starts the search outside [0, 1] (see `start_clip` of `pgd`).

References: cui2021learnable, zhang2019theoretically
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Companion, Reduction, Schedule, Step, check_range, hookimpl, ops


@dataclass
class Lbgat:
    """LBGAT (Cui et al., 2021): logits on attacked images follow a guide's on clean ones, and both learn."""

    beta: Schedule = 6.0
    reduction: Reduction = "batchmean"

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-student"}
    companions: ClassVar = {"guide": Companion()}

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"robust": self.beta}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        step.image("adv")  # the attack comes before the batch moves the running statistics
        adv, clean = step.students("adv", "clean")
        guide = step.companion("guide")
        return {
            "mse": (adv.float() - guide.float()).square().mean(1),
            "guide": ops.cross_entropy(guide, step.y),
            "robust": ops.kl(adv, clean, reduction=self.reduction),
        }


@hookimpl
def rkd_losses():
    return {"lbgat": Lbgat}

"""IGDM: a term for other losses, by which the student's input gradients come to point where the teacher's do.

    L = alpha (epoch / epochs) KL(softmax(T(x') - T(2x - x')) ‖ softmax(S(x') - S(2x - x')))

The difference of two answers on either side of x is, to first order, the gradient times 2 (x' - x): no second
derivative is needed. One term `igdm (B,)`, beside a loss that attacks: `--loss adaad+igdm`, `rslad+igdm`, `ard+igdm`.
The image 2x - x' (view `mirror`) is not clamped to [0, 1].

The weight grows with the share of the training done, from 0 to alpha. What the official code does differently:
- It divides the epoch by 200 whatever the number of epochs: of 100 epochs the last one has half of alpha, which
  `--set loss.igdm.alpha=` half of it does here. It holds the weight for an epoch; here it grows with each step.
- The authors also ran T(x') - T(x) instead (their g = 0): `one_sided`.
- Its AdaAD script forwards x' a second time, and x for a term of weight 0, which the running statistics see.

alpha: 1 on CIFAR-10; 10 to 20 on CIFAR-100 (20 in the authors' repository, 10 in that of a later paper of theirs).

References: lee2025indirect
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import DerivedView, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Igdm:
    """IGDM (Lee et al., 2025): match how the teacher's answer changes from x - d to x + d; beside another loss."""

    alpha: Schedule = 1.0
    one_sided: bool = False

    auxiliary: ClassVar = True
    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-adaptive"}
    derived_views: ClassVar = {"mirror": DerivedView(lambda step: 2 * step.image() - step.image("adv"), bounded=False)}

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"igdm": lambda progress: progress * at(self.alpha, progress)}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        other = "clean" if self.one_sided else "mirror"
        wanted = step.teacher("robust", "adv") - step.teacher("robust", other)  # before the student's graph
        adv, behind = step.students("adv", other)
        return {"igdm": ops.kl(adv - behind, wanted)}


@hookimpl
def rkd_losses():
    return {"igdm": Igdm}

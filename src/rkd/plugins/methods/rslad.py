"""RSLAD: the robust teacher's soft labels everywhere, in the search as in both terms of the loss; no hard labels.

    L = alpha KL(T(x) ‖ S(x')) + (1 - alpha) KL(T(x) ‖ S(x)),    x' = argmax KL(T(x) ‖ S(x'))

Terms `adv` and `clean`, each `(B,)`; the teacher sees clean images only. alpha = 5/6, T = 1.

The official script averages its KL over classes on both CIFAR data sets (`reduction="mean"`, on CIFAR-100 with
`scale=10`), adds 1e-5 inside one logarithm, which shifts the value by 1.0e-5 and no gradient, and starts the search
from 0.001 randn without clipping the start to [0, 1]: `--set attack.start_clip=false` does so here (see `pgd`).

References: zi2021revisiting
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Rslad:
    """RSLAD (Zi et al., 2021): robust soft labels in the search and in both terms, no hard labels."""

    alpha: Schedule = 5 / 6
    reduction: Reduction = "batchmean"
    scale: float = 1.0

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-teacher"}

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"adv": self.alpha, "clean": lambda progress: 1 - at(self.alpha, progress)}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        soft = step.teacher()  # before the student, whose graph takes memory from then on
        adv, clean = step.students("adv", "clean")
        return {
            "adv": self.scale * ops.kl(adv, soft, reduction=self.reduction),
            "clean": self.scale * ops.kl(clean, soft, reduction=self.reduction),
        }


@hookimpl
def rkd_losses():
    return {"rslad": Rslad}

"""MTARD: two teachers. The robust one teaches on adversarial images, the clean one on clean images.

    L = w_adv KL(T_robust(x') ‖ S(x')) + w_clean KL(T_clean(x) ‖ S(x)),    x' = argmax CE(S(x'), y)

Terms `adv` and `clean`, each `(B,)`; no hard labels in the outer loss. `mtard` keeps the weights fixed, `mtard-anl`
lets the adaptive normalization loss (scheduler `anl`) balance them. A scheduler may set the teachers' temperatures
`T.robust` and `T.clean`: they divide the teacher's logits only, as in B-MTARD.

The official scripts average the KL over classes on both CIFAR data sets (`reduction="mean"`, on CIFAR-100 with
`scale=10`) and add 1e-5 inside one logarithm, which shifts the value by 1e-5 and no gradient. The weights of `anl`
depend on ratios of losses: no constant factor changes them, and that shift does so in the fourth to fifth digit.
They start the search outside [0, 1], too: see `start_clip` of `pgd`.

References: zhao2022enhanced
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, check_range, hookimpl, ops


@dataclass
class Mtard:
    """MTARD (Zhao et al., 2022) with fixed weights: a robust teacher on x', a clean teacher on x."""

    weights: dict[str, Schedule] = field(default_factory=lambda: {"adv": 0.5, "clean": 0.5})
    reduction: Reduction = "batchmean"
    scale: float = 1.0

    roles: ClassVar = ("robust", "clean")
    defaults: ClassVar[Mapping[str, Any]] = {"attack": "pgd", "objective": "ce"}

    def __post_init__(self) -> None:
        if unknown := set(self.weights) - {"adv", "clean"}:
            raise ValueError(f"weights: the terms are adv and clean, got {', '.join(sorted(unknown))}")
        for name, weight in self.weights.items():
            check_range(f"weights.{name}", weight, 0)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        robust = step.teacher("robust", "adv") / step.knob("T.robust")
        natural = step.teacher("clean", "clean") / step.knob("T.clean")
        adv, clean = step.students("adv", "clean")  # after the teachers: from here on its graph takes memory
        return {
            "adv": self.scale * ops.kl(adv, robust, reduction=self.reduction),
            "clean": self.scale * ops.kl(clean, natural, reduction=self.reduction),
        }


@dataclass
class MtardAnl(Mtard):
    """MTARD (Zhao et al., 2022) whose weights the adaptive normalization loss balances."""

    defaults: ClassVar[Mapping[str, Any]] = {**Mtard.defaults, "scheduler": "anl"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights != Mtard().weights:
            raise ValueError("weights: here anl sets them; --loss mtard takes fixed ones")


@hookimpl
def rkd_losses():
    return {"mtard": Mtard, "mtard-anl": MtardAnl}

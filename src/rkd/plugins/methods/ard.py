"""ARD: the student imitates on adversarial images what the robust teacher says on clean ones.

    L = (1 - alpha) CE(S(x), y) + alpha T² KL(softmax(T(x) / T) ‖ softmax(S(x') / T)),    x' = argmax CE(S(x'), y)

Terms `kd` and `ce`, each `(B,)`; the teacher sees clean images only.

What the official script does, and the choice made here:
- it sets alpha = 1, T = 30, so the labels take no part, yet it forwards the clean batch, which moves the running
  statistics: so here (the `ce` term has the weight 0);
- it attacks in train mode from a uniform start, ten forwards that move the running statistics: so here
  (`--set attack.mode=eval` changes it);
- its KL is averaged over classes: `reduction="mean"`; the formula's `batchmean` is the default here;
- its learning rate falls once although two milestones are named: a matter of the recipe.

References: goldblum2020adversarially
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Ard:
    """ARD (Goldblum et al., 2020): teacher's clean answer at temperature T, learned on adversarial images."""

    T: Schedule = 30.0
    alpha: Schedule = 1.0
    reduction: Reduction = "batchmean"
    label_smoothing: float = 0.0

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "attack.mode": "train", "attack.start": "uniform", "objective": "ce"}

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)
        check_range("T", self.T, 1e-3)
        check_range("alpha", self.alpha, 0, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"kd": self.alpha, "ce": lambda progress: 1 - at(self.alpha, progress)}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        T = at(self.T, step.progress)
        soft = step.teacher()  # before the student, whose graph takes memory from then on
        adv, clean = step.students("adv", "clean")
        return {
            "kd": T**2 * ops.kl(adv, soft, T, self.reduction),
            "ce": ops.cross_entropy(clean, step.y, label_smoothing=self.label_smoothing),
        }


@hookimpl
def rkd_losses():
    return {"ard": Ard}

"""Knowledge distillation: the student learns the teacher's softened probabilities beside the labels.

    L = (1 - alpha) CE(S(x), y) + alpha T² KL(softmax(T(x) / T) ‖ softmax(S(x) / T))

The same temperature on both sides; T² gives the soft term the gradient scale of the hard one. Both nets see clean
images, no attack runs: a robust teacher's robustness does not reliably come along (Goldblum et al., 2020). Terms
`kd` and `ce`, each `(B,)`.

References: hinton2015distilling
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class KnowledgeDistillation:
    """Knowledge distillation (Hinton et al., 2015): softened teacher probabilities and labels, clean images."""

    T: Schedule = 4.0
    alpha: Schedule = 0.9
    reduction: Reduction = "batchmean"
    label_smoothing: float = 0.0

    roles: ClassVar = ("clean",)
    defaults: ClassVar = {"validate.select": "clean"}

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
        student = step.student("clean")
        return {
            "kd": T**2 * ops.kl(student, soft, T, self.reduction),
            "ce": ops.cross_entropy(student, step.y, label_smoothing=self.label_smoothing),
        }


@hookimpl
def rkd_losses():
    return {"kd": KnowledgeDistillation}

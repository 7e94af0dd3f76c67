"""Defensive distillation: a net of the student's own architecture is trained at temperature T on labels, the student
learns its probabilities at the same T, and is deployed at T = 1. It hides gradients rather than removing adversarial
images: Carlini and Wagner broke it. It is here as history and as a test of evaluations, never as a defence.

    L = -sum_k softmax(T(x) / T)_k log softmax(S(x) / T)_k

Clean images only, no hard labels; one term `soft (B,)`. Without `--teacher` the first net (role `initial`) is
prepared with `ce` at the same T.

At test time the logits are about T times larger than usual, the softmax saturates and its gradient underflows; an
attack on the logits (`cw`) does not care. As in `ce`, `rescale` multiplies the term by T: the gradient by the logits
is 1/T of the usual, and plain SGD would barely move at T = 100. The paper does not say how it dealt with that.

References: papernot2016distillation
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rkd.plugin import Step, hookimpl, ops


@dataclass
class DefensiveDistillation:
    """Defensive distillation (Papernot et al., 2016): same architecture at temperature T; broken, for study only."""

    T: float = 20.0
    rescale: bool = True

    roles: ClassVar = ("initial",)
    defaults: ClassVar = {"validate.select": "clean"}

    def __post_init__(self) -> None:
        if self.T <= 0:
            raise ValueError(f"T must be positive, got {self.T:g}")

    @property
    def prepare(self) -> dict[str, Any]:
        """How the first net is made if none is given: the student's architecture, labels, the same temperature."""
        return {"initial": {"student": "same", "loss": {"name": "ce", "T": self.T, "rescale": self.rescale}}}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        soft = (step.teacher() / self.T).softmax(dim=1)
        scale = self.T if self.rescale else 1.0
        return {"soft": scale * ops.cross_entropy(step.student("clean"), soft, self.T)}


@hookimpl
def rkd_losses():
    return {"defensive": DefensiveDistillation}

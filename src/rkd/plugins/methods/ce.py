"""Clean training with cross-entropy: the baseline, and how clean teachers are made.

    L = CE(S(x) / T, y)            T = 1 unless a teacher for defensive distillation is trained

x `(B, C, H, W)` in [0, 1], S(x) `(B, K)`, y `(B,)` labels or `(B, K)` probabilities; one term `ce (B,)`.

With T > 1 the gradient by the logits is 1/T of the usual one and plain SGD barely moves: `rescale` multiplies the
term by T, which restores the usual gradient at the start of training. (Carlini and Wagner's re-implementation of
defensive distillation starts from a net trained at T = 1 instead.)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Step, hookimpl, ops


@dataclass
class CrossEntropy:
    """Clean training with cross-entropy (no teacher, no attack)."""

    T: float = 1.0
    rescale: bool = True
    label_smoothing: float = 0.0

    roles: ClassVar = ()
    defaults: ClassVar = {"validate.select": "clean"}

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)
        if self.T <= 0:
            raise ValueError(f"T must be positive, got {self.T:g}")

    def __call__(self, step: Step) -> dict[str, Tensor]:
        scale = self.T if self.rescale else 1.0
        return {"ce": scale * ops.cross_entropy(step.student("clean"), step.y, self.T, self.label_smoothing)}


@hookimpl
def rkd_losses():
    return {"ce": CrossEntropy}

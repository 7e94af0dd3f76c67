"""TRADES: cross-entropy on clean images, plus how far the student's own answer moves inside the ball.

    L = CE(S(x), y) + beta KL(S(x) ‖ S(x')),    x' = argmax_{|x' - x| <= eps} KL(S(x) ‖ S(x'))

The clean side of the outer KL is not detached: gradients flow through both. Terms `clean` and `robust`, each `(B,)`.

The official code uses eps 0.031 and steps of 0.007, and forwards the clean batch in every attack step and twice in
the loss; here each is forwarded once, which gives the same values, except that the running statistics of batch norm
see the clean batch once a step instead of twice. It does not clip the search's start to [0, 1], which changes the
gradients of a batch: `--set attack.start_clip=false` reproduces that (see `pgd`).

References: zhang2019theoretically
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, check_range, hookimpl, ops


@dataclass
class Trades:
    """TRADES (Zhang et al., 2019): clean cross-entropy and beta times the student's own movement under attack."""

    beta: Schedule = 6.0
    reduction: Reduction = "batchmean"
    label_smoothing: float = 0.0

    roles: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-student"}

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)
        check_range("beta", self.beta, 0)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"robust": self.beta}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        step.image("adv")  # the attack comes before the batch moves the running statistics
        clean, adv = step.students("clean", "adv")
        return {
            "clean": ops.cross_entropy(clean, step.y, label_smoothing=self.label_smoothing),
            "robust": ops.kl(adv, clean, reduction=self.reduction),
        }


@hookimpl
def rkd_losses():
    return {"trades": Trades}

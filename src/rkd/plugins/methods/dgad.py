"""DGAD: what the teacher gets wrong on clean images is learned on them, its classes swapped; the rest under attack.

    L = mean over samples with T right on x: KL(T~(x') ‖ S(x')), with T wrong on x: KL(T~(x) ‖ S(x))
        + beta |softmax S(x') - softmax S(x)|² / K,    x' = argmax KL(T(x') ‖ S(x'))

T~ is the teacher with the logits of its top class and of the true class swapped wherever these are not the same: on x,
and on x' also where it is right on x. Terms `adv` (0 where the teacher is wrong), `clean` (0 where it is right) and
`consistency`, each `(B,)`; gradients flow through both sides of the last. beta = 1. The search is AdaAD's, with the
teacher as it is. Labels are classes: which samples the teacher gets wrong has no meaning for blended ones.

What the official code does, and the choice made here:
- It averages each group by itself and weights it by its share of the batch: together the plain mean over all samples,
  as here. (The share is of 128 images, so that an epoch's last, smaller batch counts less.)
- For MobileNetV2 a parenthesis stands wrong, and the two groups' means are multiplied: a product of two means of the
  batch, which belongs to no sample, and is not offered.
- Its variant with introspection (`DGAD_IAD1`) compares the student with itself on one and the same forward: those terms
  and their gradients are 0, and its results are DGAD's.

References: park2024dynamic, huang2023boosting
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, check_range, hookimpl, ops


@dataclass
class Dgad:
    """DGAD (Park and Min, 2024): clean images where the teacher errs, attacked ones elsewhere, its errors swapped."""

    beta: Schedule = 1.0
    reduction: Reduction = "batchmean"

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-adaptive"}

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"consistency": self.beta}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        y = step.labels
        on_clean, on_adv = step.teacher(), step.teacher(view="adv")  # before the student's graph
        clean, adv = step.students("clean", "adv")
        right = ops.correct(on_clean, y).float()
        return {
            "adv": right * ops.kl(adv, swapped(on_adv, y), reduction=self.reduction),
            "clean": (1 - right) * ops.kl(clean, swapped(on_clean, y), reduction=self.reduction),
            "consistency": (adv.float().softmax(1) - clean.float().softmax(1)).square().mean(1),
        }


def swapped(logits: Tensor, y: Tensor) -> Tensor:
    """`logits (B, K)` with those of the top class and of the class `y (B,)` in each other's place."""
    true = y.unsqueeze(1)
    top = logits.argmax(1, keepdim=True)
    return logits.scatter(1, top, logits.gather(1, true)).scatter(1, true, logits.gather(1, top))


@hookimpl
def rkd_losses():
    return {"dgad": Dgad}

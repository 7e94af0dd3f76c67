"""SAAD: samples on which the teacher is unsure count more, and the search follows the teacher to first order.

    L = mean of w_i A_i + v_i KL(T(x) ‖ S(x))        w, v: see the scheduler `entropy-weights`
    A = KL(T(x') ‖ S(x')) + alpha (epoch / epochs) KL(softmax(T(x') - T(2x - x')) ‖ softmax(S(x') - S(2x - x')))
    x' = argmax KL(softmax z ‖ S(x')),    z = T(x) + lambda e_y <grad T_y(x), x' - x>

H_i, which the weights follow, is the entropy of T(x') of Rényi's `order`; 1 is Shannon's. w_i = 5 (H_i - min H), so
that the surest sample of a batch has no weight; v_i = 0 by default, as in the published command. The second part of A
is IGDM's term, on a view `mirror` that is not clamped to [0, 1]; alpha is 1 on CIFAR-10, and 10 on CIFAR-100 and
Tiny-ImageNet. Terms `adv`, A, and `clean`, the other divergence, `adv_entropy` and `clean_entropy`, the same times H,
and `entropy`, H, each `(B,)`: the scheduler makes w and v of them. Without it (`--scheduler none`) `adv` alone counts.

The objective `kl-first-order` asks the teacher for T(x) and its gradient once a search and not in its steps: with the
loss's three questions four forwards and one backward of the teacher, where AdaAD has twelve and ten. Labels are hard.

The official code holds IGDM's share for an epoch, from 1 / epochs on; here it grows with each step, from 0 on. It
averages the weights after each epoch from 95 on (extension `swa`), and starts its search outside [0, 1] (see
`start_clip` of `pgd`). Beside it, its scripts of other methods exchange eps and step size.

References: lee2026samplewise
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import DerivedView, Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Saad:
    """SAAD (Lee and Chung, 2026): weights by the teacher's uncertainty, a search along its first-order expansion."""

    order: float = 1.0
    alpha: Schedule = 1.0
    reduction: Reduction = "batchmean"

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-first-order", "scheduler": "entropy-weights"}
    derived_views: ClassVar = {"mirror": DerivedView(lambda step: 2 * step.image() - step.image("adv"), bounded=False)}
    weights: ClassVar[dict[str, Schedule]] = {"adv_entropy": 0.0, "clean": 0.0, "clean_entropy": 0.0, "entropy": 0.0}

    def __post_init__(self) -> None:
        if self.order <= 0:
            raise ValueError(f"order must be positive, got {self.order:g}")
        check_range("alpha", self.alpha, 0)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        views = ("adv", "mirror", "clean")
        on_adv, on_mirror, on_clean = (step.teacher(view=view) for view in views)  # before the student's graph
        adv, mirror, clean = step.students(*views)
        slopes = ops.kl(adv - mirror, on_adv - on_mirror, reduction=self.reduction)
        share = at(self.alpha, step.progress) * step.progress
        attacked = ops.kl(adv, on_adv, reduction=self.reduction) + share * slopes
        unattacked = ops.kl(clean, on_clean, reduction=self.reduction)
        entropy = renyi_entropy(on_adv, self.order)
        return {
            "adv": attacked,
            "adv_entropy": entropy * attacked,
            "clean": unattacked,
            "clean_entropy": entropy * unattacked,
            "entropy": entropy,
        }


def renyi_entropy(logits: Tensor, order: float) -> Tensor:
    """log(sum_k p_k^order) / (1 - order) per sample, `(B,)`; Shannon's for order 1."""
    if order == 1:
        return ops.entropy(logits)
    return (order * logits.float().log_softmax(1)).logsumexp(1) / (1 - order)


@hookimpl
def rkd_losses():
    return {"saad": Saad}

"""CIARD: the teachers of B-MTARD, a push away from the clean one's errors, and a robust one that goes on learning.

    L = KL(softmax(R(x') / T_r) ‖ S(x')) + KL(softmax(T_clean(x) / T_c) ‖ S(x))
        - w KL(T_clean(x') ‖ softmax(S(x') / T)),  for images x' that T_clean gets wrong
        + CE(R(x'), y),                            from the share `since` of the training on, for R alone
    x' = argmax CE(S(x'), y)

Terms `adv`, `clean`, `push` (negative; 0 where T_clean is right) and `learner` (0 before `since`), each `(B,)`. R is
the companion `learner`: the robust teacher itself, which learns from `since` on and stands still before. The scheduler
`entropy-balance` moves T_r and T_c; `magnitude` sets w, which brings the push to the others' order of magnitude and
makes it a mean over the images that it is about. T = 5, since = 50 of 300 epochs.

What the official code does, and the choice made here:
- It computes the balanced weights of its ancestors and does not use them: those of `adv` and `clean` are 1.
- It has R in train mode from the start, so that running statistics drift before it learns. Here R answers in eval mode,
  at the price of the same number of forwards, and its own term alone runs it in train mode.
- R has an optimiser of its own: learning rate 1e-4, momentum 0.1. Here it shares the student's, 0.1 and 0.9: `lr`, its
  share of the student's rate, makes the same length of steps, lr / (1 - momentum).
- It multiplies the rate of the temperatures by 0.1 in each batch of epoch 215, which freezes them there: so do the
  recipes. It forwards S(x) before the search, which comes first here.
- Its KL is averaged over classes (`reduction="mean"`).

References: lu2025ciard, zhao2024mitigating
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Companion, Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Ciard:
    """CIARD (Lu et al., 2025): a push away from the clean teacher's errors; the robust teacher goes on learning."""

    T: Schedule = 5.0
    since: float = 50 / 300
    lr: float = 1 / 9000
    reduction: Reduction = "batchmean"

    roles: ClassVar = ("robust", "clean")
    defaults: ClassVar = {
        "attack": "pgd", "objective": "ce", "scheduler": ["entropy-balance", "magnitude"],
        "schedulers.entropy-balance.robust": "learner",
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_range("T", self.T, 1e-3)
        check_range("since", self.since, 0, 1)
        check_range("lr", self.lr, 0)

    @property
    def companions(self) -> dict[str, Companion]:
        return {"learner": Companion(of="robust", lr=self.lr)}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        robust = step.teacher("learner", "adv") / step.knob("T.robust")
        natural = step.teacher("clean") / step.knob("T.clean")
        fooled = step.teacher("clean", "adv")
        wrong = 1 - ops.correct(fooled, step.y).float()
        adv, clean = step.students("adv", "clean")
        pushed = ops.kl(adv / at(self.T, step.progress), fooled, reduction=self.reduction)
        # Not asked, it has no gradient, and neither momentum nor weight decay moves it.
        learns = step.progress >= self.since - 1e-9
        return {
            "adv": ops.kl(adv, robust, reduction=self.reduction),
            "clean": ops.kl(clean, natural, reduction=self.reduction),
            "push": -wrong * pushed,
            "learner": ops.cross_entropy(step.companion("learner", "adv"), step.y) if learns else 0 * wrong,
        }


@hookimpl
def rkd_losses():
    return {"ciard": Ciard}

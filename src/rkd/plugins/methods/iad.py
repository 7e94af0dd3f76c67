"""IAD: the teacher's weight is its confidence in the label on the attacked image; the rest goes to the student's own
answer on the clean one.

    L = a T² KL(softmax(T(x) / T) ‖ softmax(S(x') / T)) + (1 - a) KL(S(x) ‖ S(x')),    x' = argmax CE(S(x'), y)

    a = p_y(x')^beta with p the teacher's softmax; a = 1 before `begin`, a share of the training

Terms `kd` and `self`, each `(B,)`. Gradients flow through both sides of `self`, none through a. With probabilities for
labels, log p_y is their mean of log p.

The official code of IAD-I leaves out the a before `kd` (`--set loss.weigh_teacher=false`). It attacks in train mode
from a uniform start, so here, and forwards the clean batch twice from `begin` on, here once. T = 1, beta = 0.1; `begin`
is epoch 60 of 200.

`adaiad` is IAD within AdaAD's code: the search of AdaAD (`kl-adaptive`, eval mode), and T(x') for T(x) in `kd`; T = 30,
(1 - a) before `self` alone, the clean batch first.

References: zhu2022reliable, huang2023boosting
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import Schedule, Step, at, check_range, hookimpl, ops


def confidence(step: Step, beta: Schedule, begin: float, role: str | None = None) -> Tensor:
    """A teacher's probability of the label on the attacked image, to the power of `beta`, `(B,)`; 1 before `begin`."""
    log_p = -ops.cross_entropy(step.teacher(role, "adv"), step.y)
    return (at(beta, step.progress) * log_p).exp() if step.progress >= begin else torch.ones_like(log_p)


def check_confidence(beta: Schedule, begin: float) -> None:
    """Raise ValueError for options that make no sense."""
    check_range("beta", beta, 0)
    check_range("begin", begin, 0, 1)


@dataclass
class Iad:
    """IAD (Zhu et al., 2022): a teacher, weighted by its confidence on x', and the student's own clean answer."""

    T: Schedule = 1.0
    beta: Schedule = 0.1
    begin: float = 0.3
    weigh_teacher: bool = True

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "attack.mode": "train", "attack.start": "uniform", "objective": "ce"}

    def __post_init__(self) -> None:
        check_range("T", self.T, 1e-3)
        check_confidence(self.beta, self.begin)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        share, soft = confidence(step, self.beta, self.begin), step.teacher()  # before the student's graph
        adv, clean = step.students("adv", "clean")
        return self._terms(step, share, soft, adv, clean)

    def _terms(self, step: Step, share: Tensor, soft: Tensor, adv: Tensor, clean: Tensor) -> dict[str, Tensor]:
        T = at(self.T, step.progress)
        kd = T**2 * ops.kl(adv, soft, T)
        return {"kd": share * kd if self.weigh_teacher else kd, "self": (1 - share) * ops.kl(adv, clean)}


@dataclass
class AdaIad(Iad):
    """AdaIAD (Huang et al., 2023): IAD with AdaAD's search, and the teacher's answer on the attacked image."""

    T: Schedule = 30.0
    weigh_teacher: bool = False

    defaults: ClassVar = {"attack": "pgd", "objective": "kl-adaptive"}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        share, soft = confidence(step, self.beta, self.begin), step.teacher(view="adv")
        clean, adv = step.students("clean", "adv")
        return self._terms(step, share, soft, adv, clean)


@hookimpl
def rkd_losses():
    return {"iad": Iad, "adaiad": AdaIad}

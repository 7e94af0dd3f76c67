"""ADR: adversarial training on labels that the student's own average A rectifies.

    L = CE(S(x'), r),    r = l p + (1 - l) onehot(y),    x' = argmax CE(S(x'), r)
    p = softmax(A(x) / T),    l = clip(lam - (max_k p_k - p_y), 0, 1)

One term `adv (B,)`. T falls from 2.5 to 2 and lam grows from .7 to .95 by half a cosine, as on CIFAR-10.

References: wu2024annealing
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import one_hot

from rkd.plugin import Companion, Schedule, at, hookimpl, ops, parse_schedule

FALLING, GROWING = parse_schedule("cosine(2.5, 2)"), parse_schedule("cosine(0.7, 0.95)")


@dataclass
class Adr:
    """ADR (Wu et al., 2024): the student's average corrects the labels of adversarial training."""

    T: Schedule = FALLING
    lam: Schedule = GROWING

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd", "attack.mode": "train", "objective": "ce-targets"}
    companions: ClassVar = {"average": Companion(follows=0.995)}

    def targets(self, step):
        p = (step.teacher("average") / at(self.T, step.progress)).softmax(1)
        y = one_hot(step.labels, p.shape[1])
        share = (at(self.lam, step.progress) - p.amax(1) + (p * y).sum(1)).clamp(0, 1).unsqueeze(1)
        return share * p + (1 - share) * y

    def __call__(self, step):
        return {"adv": ops.cross_entropy(step.student("adv"), step.targets)}


@hookimpl
def rkd_losses():
    return {"field-adr": Adr}

"""Adversarial training: minimise the cross-entropy on the worst images that PGD finds.

    L = CE(S(x'), y),    x' = argmax_{|x' - x| <= eps} CE(S(x'), y)

One term `adv (B,)`. `label_smoothing` acts on this loss alone: the search climbs the objective, plain cross-entropy.

Settings of the paper and its code: 10 steps of 2/255 in the configuration file (7 in the text), eps 8/255, uniform
start, and the TensorFlow graph attacks with batch statistics. Here the attack runs in eval mode, as most later work
does; `--set attack.mode=train` gives the other. The start is uniform.

References: madry2018towards
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Step, hookimpl, ops


@dataclass
class AdversarialTraining:
    """Adversarial training (Madry et al., 2018): cross-entropy on PGD images."""

    label_smoothing: float = 0.0

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd", "attack.start": "uniform", "objective": "ce"}

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {"adv": ops.cross_entropy(step.student("adv"), step.y, label_smoothing=self.label_smoothing)}


@hookimpl
def rkd_losses():
    return {"pgd-at": AdversarialTraining}

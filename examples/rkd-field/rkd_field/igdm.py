"""IGDM: a term for other losses, by which the student's answer changes along x' - x as the teacher's does.

    L = alpha (epoch / epochs) KL(softmax(T(x') - T(2x - x')) ‖ softmax(S(x') - S(2x - x')))

`rkd run --loss rslad+field-igdm`. One term `field-igdm (B,)`; the view `across` is 2x - x', which may leave [0, 1].

References: lee2025indirect
"""

from dataclasses import dataclass
from typing import ClassVar

from rkd.plugin import DerivedView, Schedule, at, hookimpl, ops


@dataclass
class Igdm:
    """IGDM (Lee et al., 2025): match how the teacher's answer changes across an image; beside another loss."""

    alpha: Schedule = 1.0

    auxiliary: ClassVar = True
    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-adaptive"}
    derived_views: ClassVar = {"across": DerivedView(lambda step: 2 * step.image() - step.image("adv"), bounded=False)}

    @property
    def weights(self):
        return {"field-igdm": lambda progress: progress * at(self.alpha, progress)}

    def __call__(self, step):
        wanted = step.teacher("robust", "adv") - step.teacher("robust", "across")
        adv, across = step.students("adv", "across")
        return {"field-igdm": ops.kl(adv - across, wanted)}


@hookimpl
def rkd_losses():
    return {"field-igdm": Igdm}

"""AdvProp: clean and adversarial images train one net, each through a batch norm of its own.

    L = CE(S(x), y) + CE(S_aux(x'), y),    x' = argmax CE(S_aux(x'), y)

The student is converted by `aux-bn`, which this loss brings along: attack and adversarial forward go through the
auxiliary norms, which are dropped for deployment. Terms `clean` and one per further view, each `(B,)`.

`views` may name more than one (fine-grained AdvProp): give each an attack (`--attack weak=fgsm`) and an auxiliary norm
(`--set 'student.conversions.aux-bn.views=["adv", "weak"]'`). The paper's has norms for clean, AutoAugment's and
adversarial images: recipe `cifar10-advprop-fine-grained`.

The paper attacks with eps 1 to 4 of 255, eps + 1 steps of 1/255 and a random start: at 4/255 five steps of eps/4,
which is the default here; small nets prefer eps = 1/255. Public ports attack towards a random class instead.

References: xie2020adversarial
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Step, hookimpl, ops


@dataclass
class AdvProp:
    """AdvProp (Xie et al., 2020): cross-entropy on clean and adversarial images, batch norms apart."""

    views: tuple[str, ...] = ("adv",)
    label_smoothing: float = 0.0

    roles: ClassVar = ()
    defaults: ClassVar = {
        "attack": "pgd",
        "attack.steps": 5,
        "attack.start": "uniform",
        "objective": "ce",
        "student.conversions": {"aux-bn": {}},
    }

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        views = ("clean", *self.views)
        return {
            view: ops.cross_entropy(z, step.y, label_smoothing=self.label_smoothing)
            for view, z in zip(views, step.students(*views), strict=True)
        }


@hookimpl
def rkd_losses():
    return {"advprop": AdvProp}

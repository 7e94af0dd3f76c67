"""Hello: cross-entropy on clean images, and stay near the robust teacher under attack.

L = CE(S(x), y) + w KL(T(x) ‖ S(x')),    w grows from 0 to `top` with the scheduler `crescendo`
"""

from dataclasses import dataclass
from typing import ClassVar

from rkd.plugin import hookimpl, ops


@dataclass
class Hello:
    """Clean cross-entropy, and the teacher's clean answer on attacked images."""

    T: float = 1.0
    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-teacher", "scheduler": "crescendo"}
    weights: ClassVar = {}

    def __call__(self, step):
        adv, clean = step.students("adv", "clean")
        return {"clean": ops.cross_entropy(clean, step.y), "robust": ops.kl(adv, step.teacher(), self.T)}


@dataclass
class Crescendo:
    """Raises the weight of one term from 0 to `top` over the training."""

    term: str = "robust"
    top: float = 5.0

    def update(self, step, terms):
        return {f"weight.{self.term}": self.top * step.progress}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@hookimpl
def rkd_losses():
    return {"hello": Hello}


@hookimpl
def rkd_schedulers():
    return {"crescendo": Crescendo}

"""Auxiliary batch norm: each named view gets batch norms of its own, all other weights are shared.

Clean images (and any view not named) use the net's own norms, which alone are kept for deployment. Any loss can use
it: the loss asks for views and does not know. One name per auxiliary norm; `joint` sends all views through one
forward, which is exact as long as batch norm is the only layer that mixes samples.

The auxiliary norms start as copies of the main ones.

References: xie2020adversarial
"""

from dataclasses import dataclass

from rkd.plugin import NetStudent, Refused, Router, add_auxiliary, hookimpl


@dataclass
class AuxiliaryBatchNorm:
    """Auxiliary batch norm (AdvProp, 2020): separate batch norms for adversarial images, dropped at deployment."""

    views: tuple[str, ...] = ("adv",)
    joint: bool = False

    def __post_init__(self) -> None:
        if not self.views or "clean" in self.views or len(set(self.views)) < len(self.views):
            raise ValueError(f"views must be different names other than 'clean', got {list(self.views)}")

    def __call__(self, student: NetStudent) -> NetStudent:
        if student.router is not None:
            raise Refused("aux-bn: this student has auxiliary batch norms already")
        router = Router()
        if not add_auxiliary(student.net, self.views, router):
            raise Refused("aux-bn: this student has no batch norm to double; choose a model with batch norm")
        return NetStudent(student.net, router, self.joint, self.views)


@hookimpl
def rkd_students():
    return {"aux-bn": AuxiliaryBatchNorm}

"""Terms with a net of each kind beside the student, to stand beside any loss: one that learns, one that follows, and a
teacher that goes on learning."""

from __future__ import annotations

from typing import ClassVar

from rkd.plugin import Companion, hookimpl, ops


class Second:
    """A second net learns from labels, and the student from it."""

    auxiliary: ClassVar = True
    roles: ClassVar = ()
    companions: ClassVar = {"second": Companion()}

    def __call__(self, step):
        second = step.companion("second")
        return {"second": ops.cross_entropy(second, step.y), "from-second": ops.kl(step.student(), second.detach())}


class Mean:
    """The student stays near its own average."""

    auxiliary: ClassVar = True
    roles: ClassVar = ()
    companions: ClassVar = {"mean": Companion(follows=0.9)}

    def __call__(self, step):
        return {"mean": ops.kl(step.student(), step.companion("mean"))}


class GoesOn:
    """A robust teacher goes on learning from labels."""

    auxiliary: ClassVar = True
    roles: ClassVar = ("robust",)
    companions: ClassVar = {"goes-on": Companion(of="robust", lr=0.1)}

    def __call__(self, step):
        return {"goes-on": ops.cross_entropy(step.companion("goes-on"), step.y)}


@hookimpl
def rkd_losses():
    return {"second": Second, "mean": Mean, "goes-on": GoesOn}

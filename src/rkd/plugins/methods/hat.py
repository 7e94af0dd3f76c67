"""HAT: TRADES with helper images beyond the ball, labelled by a net that was trained on clean images.

    L = CE(S(x), y) + beta KL(S(x) ‖ S(x')) + gamma CE(S(x_h), y_h)
    x_h = x + h (x' - x),    y_h = argmax H(x'),    x' = argmax_{|x' - x| <= eps} KL(S(x) ‖ S(x'))

A robust net needs a far larger margin along its own adversarial directions than a standard one; what the standard net
H says at x' keeps that margin in bounds. Terms `clean`, `robust` and `helper`, each `(B,)`. The helper images (view
`helper`) are not clamped to [0, 1]. H is the teacher `clean`; a missing one is prepared with the student's
architecture, as there.

h = 2, beta = 2.5, gamma = 0.5 are the settings of the published CIFAR-10 results; the official function's own defaults
are h = 3.5, beta = gamma = 1. The official code starts the search outside [0, 1], as that of TRADES, and has
cross-entropy at x' for the KL as a variant.

References: rade2022reducing, zhang2019theoretically
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rkd.plugin import DerivedView, Schedule, Step, check_range, hookimpl, ops

from .trades import Trades


@dataclass
class Hat(Trades):
    """HAT (Rade and Moosavi-Dezfooli, 2022): TRADES, and a clean net's labels on images beyond the ball."""

    beta: Schedule = 2.5
    gamma: Schedule = 0.5
    h: float = 2.0

    roles: ClassVar = ("clean",)
    prepare: ClassVar[dict[str, Any]] = {"clean": {"student": "same", "loss": {"name": "ce"}}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0)
        check_range("h", self.h, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {**super().weights, "helper": self.gamma}

    @property
    def derived_views(self) -> dict[str, DerivedView]:
        return {"helper": DerivedView(self._beyond, bounded=False)}

    def _beyond(self, step: Step) -> Tensor:
        x = step.image()
        return x + self.h * (step.image("adv") - x)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        label = step.teacher("clean", "adv").argmax(1)  # before the student's graph
        *_, helper = step.students("clean", "adv", "helper")
        return {**super().__call__(step), "helper": ops.cross_entropy(helper, label)}


@hookimpl
def rkd_losses():
    return {"hat": Hat}

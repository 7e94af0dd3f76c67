"""The entropy-based balance of B-MTARD: two teachers' temperatures move until their answers are equally uncertain.

    T_r(t) = clip(T_r(t - 1) - rate sign(H_r(t) - H_c(t)), low, high),    T_c(t) = the same with r and c exchanged

H_r is the batch's mean entropy of softmax(T_robust(x') / T_r), H_c that of softmax(T_clean(x) / T_c), both at the
temperatures that this step's loss has used. So the surer teacher, usually the clean one, is made hotter by `rate` a
step until the other is as sure. Both start at 1, the least value; the new ones, `T.robust` and `T.clean`, act from the
next step on, as in the official code.

There H stands as mean(p log(p + 1e-5)), negative, and the sign is that of the ratio of two H less 1: the same sign
unless both are closer than that 1e-5 moves them. The rate falls with the learning rate, there by name of epochs.
`robust`: the role that answers for attacked images, or a companion's name (`ciard`).

References: zhao2024mitigating
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rkd.plugin import Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class EntropyBalance:
    """Entropy-based balance (B-MTARD, 2024): temperatures at which a robust and a clean teacher are equally sure."""

    rate: Schedule = 0.001
    low: float = 1.0
    high: float = 10.0
    robust: str = "robust"

    _temperatures: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0)
        if not 0 < self.low <= self.high:
            raise ValueError(f"low and high must be positive and in this order, got {self.low:g} and {self.high:g}")

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answers = [step.teacher(self.robust, "adv"), step.teacher("clean", "clean")]
        if self._temperatures is None:
            self._temperatures = torch.ones(2, device=answers[0].device)
        temperatures = self._temperatures.to(answers[0].device)
        entropies = torch.stack(
            [ops.entropy(logits, T).mean() for logits, T in zip(answers, temperatures, strict=True)]
        )
        rate = at(self.rate, step.progress) * step.lr_scale
        moved = temperatures - rate * torch.sign(entropies - entropies.flip(0))
        self._temperatures = moved.clamp(self.low, self.high)
        return {"T.robust": self._temperatures[0], "T.clean": self._temperatures[1]}

    def state_dict(self) -> dict[str, Any]:
        return {"temperatures": self._temperatures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._temperatures = state["temperatures"]


@hookimpl
def rkd_schedulers():
    return {"entropy-balance": EntropyBalance}

"""Class-wise temperatures of ABSLD: classes that the student finds hard get a lower temperature of the teacher.

    T_c <- clip(T_c - rate (L_c - mean L) / max |L - mean L|, low, high)

for the views `adv` and `clean` one by one: L_c is the mean cross-entropy of the student's training logits on that
view over the samples of class c since the last update; mean and max run over the classes. The values are `class_T.adv`
and `class_T.clean`, each `(K,)`; they start at 1. A class without a sample since then keeps its temperature. A soft
label counts for each class by its share.

There are `updates` updates in a training, evenly spread: 300, one an epoch, for the script's 300 epochs. The first step
after an interval makes the update, and the one after it is the first to use the new temperatures: a step later than
there. The rate falls with the learning rate, as there.

The script compares sums of losses instead of means, which is the same for classes of equal size; of unequal ones a
frequent class counts as hard: `sums`. It divides one and the same logits by both views' temperatures, one after the
other, so that both views are taught at the product of both: `aliased`.

References: zhao2024improving
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rkd.plugin import Schedule, Step, at, check_range, hookimpl, ops

VIEWS = ("adv", "clean")


@dataclass
class ClassTemperature:
    """Class-wise temperatures (ABSLD, 2024): a lower temperature of the teacher for classes that are hard to learn."""

    rate: Schedule = 0.1
    low: float = 0.5
    high: float = 5.0
    updates: int = 300
    sums: bool = False
    aliased: bool = False

    _temperatures: Tensor | None = field(default=None, init=False, repr=False)  # (views, K)
    _losses: Tensor | None = field(default=None, init=False, repr=False)  # (views, K), summed since the last update
    _counts: Tensor | None = field(default=None, init=False, repr=False)  # (K,)
    _done: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0)
        check_range("updates", self.updates, 1)
        if not 0 < self.low <= 1 <= self.high:
            raise ValueError(f"low and high must be positive with 1 between them, got {self.low:g} and {self.high:g}")

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = [view.detach() for view in step.students(*VIEWS)]
        classes, device = logits[0].shape[1], logits[0].device
        if self._temperatures is None or self._losses is None or self._counts is None:
            self._temperatures = torch.ones(len(VIEWS), classes, device=device)
            self._losses = torch.zeros(len(VIEWS), classes, device=device)
            self._counts = torch.zeros(classes, device=device)
        temperatures = self._temperatures.to(device)
        losses, counts = self._losses.to(device), self._counts.to(device)
        # A hair of slack, as for schedules: progress is (epoch + fraction) / epochs.
        due = math.floor(step.progress * self.updates + 1e-9)
        if due > self._done:
            temperatures = self._moved(temperatures, losses, counts, at(self.rate, step.progress) * step.lr_scale)
            losses, counts = torch.zeros_like(losses), torch.zeros_like(counts)
        shares = step.y if step.y.ndim == 2 else step.y.unsqueeze(1) == torch.arange(classes, device=device)
        shares = shares.float()
        entropies = torch.stack([ops.cross_entropy(view, step.y) for view in logits])
        self._temperatures, self._done = temperatures, due
        self._losses, self._counts = losses + entropies @ shares, counts + shares.sum(0)
        adv, clean = temperatures.prod(0).expand(2, -1) if self.aliased else temperatures
        return {"class_T.adv": adv, "class_T.clean": clean}

    def _moved(self, temperatures: Tensor, losses: Tensor, counts: Tensor, rate: float) -> Tensor:
        seen = (counts > 0).float()
        risks = losses if self.sums else losses / counts.clamp_min(1e-12)
        gaps = (risks - (risks * seen).sum(1, keepdim=True) / seen.sum().clamp_min(1)) * seen
        gaps = gaps / gaps.abs().amax(1, keepdim=True).clamp_min(1e-12)
        return (temperatures - rate * gaps).clamp(self.low, self.high)

    def state_dict(self) -> dict[str, Any]:
        return {
            "temperatures": self._temperatures, "losses": self._losses, "counts": self._counts, "done": self._done,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._temperatures, self._losses = state["temperatures"], state["losses"]
        self._counts, self._done = state["counts"], state["done"]


@hookimpl
def rkd_schedulers():
    return {"class-temperature": ClassTemperature}

"""The adaptive normalization loss of MTARD: terms that have fallen least since the start get more weight.

    relative loss   l_i(t) = L_i(t) / L_i(0)
    target          r_i(t) = l_i(t)^beta / sum_j l_j(t)^beta
    weight          w_i(t) = rate * r_i(t) + (1 - rate) * w_i(t - 1),    w_i(-1) = 1 / n

It works with any loss of two or more terms. The new weights act in the very step whose losses they come from.

As in the official code: an update every batch; L(0) is the first batch's loss (one batch: a noisy constant, which a
checkpoint must hold); rate 0.025, scaled by the learning rate's share of its start (there: times 0.1 at each drop);
beta = 1. The code updates one weight and takes 1 minus it for the other, which the formula above equals for n = 2.

References: zhao2022enhanced
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rkd.plugin import Refused, Schedule, Step, at, check_range, hookimpl


@dataclass
class AdaptiveNormalization:
    """Adaptive normalization loss (MTARD, 2022): weights the terms by how little they have fallen."""

    rate: Schedule = 0.025
    beta: float = 1.0

    _first: Tensor | None = field(default=None, init=False, repr=False)
    _weights: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0, 1)

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if len(terms) < 2:
            raise Refused(
                f"scheduler anl balances two or more loss terms, but this loss has one ({', '.join(terms)}): "
                "take the scheduler out"
            )
        losses = torch.stack([term.detach().mean() for term in terms.values()]).double()
        if self._first is None or self._weights is None:
            self._first = losses
            self._weights = torch.full_like(losses, 1 / len(terms))
        first, weights = self._first.to(losses), self._weights.to(losses)
        # A term that starts at exactly zero has no relative size: its ratio counts as 1.
        relative = torch.where(first > 0, losses / first.clamp_min(1e-300), torch.ones_like(losses))
        shares = relative.clamp_min(0) ** self.beta
        total = shares.sum()
        target = torch.where(total > 0, shares / total.clamp_min(1e-300), weights)
        rate = at(self.rate, step.progress) * step.lr_scale
        self._weights = rate * target + (1 - rate) * weights
        return {f"weight.{name}": w for name, w in zip(terms, self._weights.float(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._weights = state["first"], state["weights"]


@hookimpl
def rkd_schedulers():
    return {"anl": AdaptiveNormalization}

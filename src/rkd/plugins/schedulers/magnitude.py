"""Bring one term to the order of magnitude of others, which CIARD does with its push.

    weight.TERM = 10^(min_j floor(log10 |L_j|) - floor(log10 |L|)) B / n

L_j are the means of the terms `others` over the batch of B samples, L that of `term` over the n samples for which it is
not 0: with B / n the weighted mean over the batch becomes one over these. Without any, or where the others are 0, the
weight is 0. It acts in the very step that it follows from, and nothing is remembered.

References: lu2025ciard
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rkd.plugin import Refused, Step, hookimpl


@dataclass
class Magnitude:
    """Order of magnitude (CIARD, 2025): a term's weight brings it to the power of ten of the smallest of others."""

    term: str = "push"
    others: list[str] = field(default_factory=lambda: ["adv", "clean"])

    def __post_init__(self) -> None:
        if not self.others or self.term in self.others:
            raise ValueError("others: names of other terms, at least one")

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if missing := [name for name in (self.term, *self.others) if name not in terms]:
            raise Refused(f"scheduler magnitude: this loss has no term {missing[0]!r} (its terms: {', '.join(terms)})")
        own = terms[self.term].detach().double()
        share = (own != 0).double().mean()
        power = torch.stack([terms[name].detach().double().mean().abs() for name in self.others]).log10().floor().amin()
        weight = 10 ** (power - (own.mean().abs() / share).log10().floor()) / share
        return {f"weight.{self.term}": torch.where(share > 0, weight, 0.0).float()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@hookimpl
def rkd_schedulers():
    return {"magnitude": Magnitude}

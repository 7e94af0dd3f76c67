"""SAAD's weights: samples on which the teacher is less sure count more, measured against the batch's surest one.

    w_i = scale (H_i - min H),    v_i = beta (1 - (H_i - min H) / (max H - min H))
    mean(w_i A_i + v_i C_i),      min and max over the whole batch

A sample's weight depends on the others of its batch, but only by two numbers, and the weighted mean is linear in what
each sample knows of itself:

    mean(w_i A_i) = scale mean(H_i A_i) - scale min H mean(A_i),   and mean(v_i C_i) alike

So the loss returns A, H A, C, H C and H as the terms `adv`, `adv_entropy`, `clean`, `clean_entropy` and `entropy`, and
here their weights are set, one of them negative, in the very step that they belong to: exact for a batch in
micro-batches and over processes too, where the scheduler sees the whole.

In the official code 1e-8 stands beside max H - min H; here it is at least a thousandth of max H, so that the two large
weights of a batch on which the teacher is everywhere equally sure do not drown the sum in rounding.

References: lee2026samplewise
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rkd.plugin import Refused, Schedule, Step, at, check_range, hookimpl

TERMS = ("adv", "adv_entropy", "clean", "clean_entropy", "entropy")


@dataclass
class EntropyWeights:
    """Weights by the teacher's entropy (SAAD, 2026): of the loss `saad`, against the batch's surest sample."""

    scale: Schedule = 5.0
    beta: Schedule = 0.0

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 0)
        check_range("beta", self.beta, 0)

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        if missing := [name for name in TERMS if name not in terms]:
            raise Refused(
                f"scheduler entropy-weights weights the terms of --loss saad, and this loss has no {missing[0]} "
                f"(its terms: {', '.join(terms)}): take the scheduler out"
            )
        low, high = terms["entropy"].detach().aminmax()
        span = torch.maximum(high - low, 1e-3 * high).clamp_min(1e-12)
        scale, beta = at(self.scale, step.progress), at(self.beta, step.progress)
        return {
            "weight.adv": -scale * low,
            "weight.adv_entropy": scale,
            "weight.clean": beta * (1 + low / span),
            "weight.clean_entropy": -beta / span,
            "weight.entropy": 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@hookimpl
def rkd_schedulers():
    return {"entropy-weights": EntropyWeights}

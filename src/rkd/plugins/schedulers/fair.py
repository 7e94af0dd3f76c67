"""Class weights of Fair-ARD: classes whose samples an attack turns wrong sooner get more weight, for any loss that
attacks.

    kappa_c  = mean over the class's samples of the number of queries at which the sample is still right
    weight_c = clip(C r_c / sum_k r_k, low, high),    r_c = (kappa_c + 1e-5)^-beta

kappa is counted during an epoch, in the attack that makes the images `view`: of ten steps it is at most 10, and the
images that the search ends with are not asked about. The weights act on all terms through the next epoch; in the first
one, and for a class without a sample in the last one, they are 1. They are clipped last, so their mean is not 1.

As in the official code, but for three things: it divides by n / C for each class, which is the same for classes of
equal size (in one of others a frequent class counted as a robust one); its Fair-RSLAD leaves out the 1e-5; a soft label
counts here for each class by its share.

References: yue2023revisiting
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rkd.plugin import Refused, Run, Step, check_range, hookimpl, ops


@dataclass
class Fair:
    """Fair class weights (Fair-ARD, 2023): more for classes that an attack turns wrong in fewer queries."""

    beta: float = 2.0
    low: float = 5 / 6
    high: float = 5 / 2
    view: str = "adv"

    _run: Run | None = field(default=None, init=False, repr=False)
    _heard: Tensor | None = field(default=None, init=False, repr=False)  # (K,): of this process, in the step in hand
    _right: Tensor | None = field(default=None, init=False, repr=False)  # (K,): of all, in the epoch so far
    _samples: Tensor | None = field(default=None, init=False, repr=False)  # (K,)
    _weights: Tensor | None = field(default=None, init=False, repr=False)  # (K,)

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0)
        if not 0 <= self.low <= 1 <= self.high:
            raise ValueError(f"low must be between 0 and 1, high at least 1, got {self.low:g} and {self.high:g}")

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        self._run = run
        if self._right is None:
            self._begin(torch.zeros(len(run.data.classes), device=run.device))

    @hookimpl
    def rkd_attack_query(self, step: Step, view: str, rows: Tensor | None, query: int, logits: Tensor) -> None:
        if view == self.view and rows is not None:
            y = step.y[rows]
            right = ops.correct(logits, y).float() @ _shares(y, logits.shape[1])
            self._heard = right if self._heard is None else self._heard + right

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.view not in step.used.views:
            raise Refused(
                f"scheduler fair counts at how many queries of an attack a sample is still right, and this loss has no "
                f"attack that makes the view {self.view!r}: take it out, or choose another loss"
            )
        if self._right is None and self._heard is not None:
            self._begin(torch.zeros_like(self._heard))
        if self._right is None or self._samples is None or self._weights is None:  # a trial in which nothing was asked
            return {}
        heard = torch.zeros_like(self._right) if self._heard is None else self._heard
        if self._run is not None:
            heard = self._run.ranks.sum(heard)
        self._heard = None
        self._right = self._right.to(heard) + heard
        self._samples = self._samples.to(heard) + _shares(step.y, len(heard)).sum(0)
        return {"class_weights": self._weights.to(heard)}

    @hookimpl
    def rkd_epoch_end(self, run: Run, metrics: Mapping[str, Any]) -> None:
        if self._right is None or self._samples is None:  # every step was left out
            return
        if not self._right.any():
            text = f"scheduler fair: no query of the attack on {self.view!r} found a sample right; class weights stay 1"
            run.hooks.hook.rkd_notice(run=run, text=text)
        seen = self._samples > 0
        kappa = self._right / self._samples.clamp_min(1e-12) + 1e-5
        # Relative to the least, so that no power overflows.
        r = torch.where(seen, (kappa / kappa[seen].min()) ** -self.beta, 0.0)
        weights = (seen.sum() * r / r.sum()).clamp(self.low, self.high)
        self._weights = torch.where(seen, weights, 1.0)
        self._right, self._samples = torch.zeros_like(self._right), torch.zeros_like(self._samples)

    def _begin(self, nothing: Tensor) -> None:
        self._right, self._samples, self._weights = nothing, nothing, nothing + 1

    def state_dict(self) -> dict[str, Any]:
        return {"right": self._right, "samples": self._samples, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._heard = None
        self._right, self._samples, self._weights = state["right"], state["samples"], state["weights"]


def _shares(y: Tensor, classes: int) -> Tensor:
    """Each class's share of each label, `(B, K)`."""
    return (y if y.ndim == 2 else y.unsqueeze(1) == torch.arange(classes, device=y.device)).float()


@hookimpl
def rkd_schedulers():
    return {"fair": Fair}

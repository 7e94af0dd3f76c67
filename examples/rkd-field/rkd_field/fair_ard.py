"""Fair-ARD: L = w_y T² KL(softmax(R(x) / T) ‖ softmax(S(x') / T)) with the robust teacher R.

w_c is kappa_c^-beta, scaled to the mean 1 and clipped to [5/6, 5/2]; kappa_c is the mean number of the last epoch's
queries at which a sample of class c was right.

References: yue2023revisiting
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn.functional import one_hot

from rkd.plugin import hookimpl, ops


@dataclass
class FairArd:
    """Fair-ARD (Yue et al., 2023): ARD that weighs classes by how soon an attack turns them wrong."""

    T: float = 30.0
    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd", "attack.mode": "train", "objective": "ce", "scheduler": "field-fair"}

    def __call__(self, step):
        return {"kd": self.T**2 * ops.kl(step.student("adv"), step.teacher(), self.T)}


@dataclass
class Fair:
    """Class weights from an attack's queries (Fair-ARD, 2023)."""

    beta: float = 2.0
    _heard: Any = field(default=None, init=False, repr=False)  # (K,): right in this process's part of the step
    _seen: Any = field(default=None, init=False, repr=False)  # (2, K): right, and samples, in the epoch so far
    _weights: Any = field(default=None, init=False, repr=False)
    _sum: Any = field(default=torch.clone, init=False, repr=False)  # over processes

    @hookimpl
    def rkd_run_start(self, run):
        self._sum, self._heard = run.ranks.sum, torch.zeros(len(run.data.classes), device=run.device)

    @hookimpl
    def rkd_attack_query(self, step, rows, logits):
        if rows is not None:
            y = step.labels[rows]
            right = ops.correct(logits, y).float() @ one_hot(y, logits.shape[1]).float()
            self._heard = right if self._heard is None else self._heard + right

    def update(self, step, terms):
        if self._heard is None:  # a trial whose attack asked nothing
            return {}
        right, self._heard = self._sum(self._heard), torch.zeros_like(self._heard)
        seen = torch.stack([right, one_hot(step.labels, len(right)).sum(0)])
        self._seen = seen if self._seen is None else self._seen.to(seen) + seen
        self._weights = torch.ones_like(right) if self._weights is None else self._weights.to(right)
        return {"class_weights": self._weights}

    @hookimpl
    def rkd_epoch_end(self, run):
        right, samples = self._seen
        r = (right / samples.clamp(min=1) + 1e-5) ** -self.beta
        self._weights, self._seen = (len(r) * r / r.sum()).clamp(5 / 6, 5 / 2), None

    def state_dict(self):
        return {"seen": self._seen, "weights": self._weights}

    def load_state_dict(self, state):
        self._seen, self._weights = state["seen"], state["weights"]


@hookimpl
def rkd_losses():
    return {"field-fair-ard": FairArd}


@hookimpl
def rkd_schedulers():
    return {"field-fair": Fair}

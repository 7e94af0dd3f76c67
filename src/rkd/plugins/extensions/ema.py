"""EMA: evaluate and keep an exponential moving average of the student's weights.

    average <- decay * average + (1 - decay) * weights        after every update

Averaged weights often keep more robustness than the last ones (Gowal et al., 2020, use decay 0.995). Buffers (batch
norm's running statistics) are copied, not averaged. Before `since` (a share of the training) the average simply
follows the weights.

References: gowal2020uncovering
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rkd.plugin import Run, Student, hookimpl


@dataclass
class Ema:
    """Exponential moving average of the weights (EMA): evaluated and kept instead of the last ones."""

    decay: float = 0.995
    since: float = 0.0

    _average: Student | None = field(default=None, init=False, repr=False)
    _loaded: Mapping[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay:g}")
        if not 0 <= self.since <= 1:
            raise ValueError(f"since is a share of the training in [0, 1], got {self.since:g}")

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        self._average = copy.deepcopy(run.student)
        if self._loaded is not None:
            self._average.net.load_state_dict(self._loaded)

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        if self._average is None:
            return
        decay = self.decay if run.progress >= self.since else 0.0
        with torch.no_grad():
            for mean, weight in zip(self._average.net.parameters(), run.student.net.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
            for kept, buffer in zip(self._average.net.buffers(), run.student.net.buffers(), strict=True):
                kept.copy_(buffer)

    @hookimpl
    def rkd_eval_net(self, run: Run) -> nn.Module | None:
        return self._average.deployed() if self._average else None

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.net.state_dict() if self._average else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state["average"]
        if self._average is not None and self._loaded is not None:  # amid a training: a rollback
            self._average.net.load_state_dict(self._loaded)


@hookimpl
def rkd_extensions():
    return {"ema": Ema}

"""EMA: evaluate and keep an exponential moving average of the student's weights.

    average <- decay * average + (1 - decay) * weights        after every update

Averaged weights often keep more robustness than the last ones (Gowal et al., 2020, use decay 0.995). Buffers (batch
norm's running statistics) are copied, not averaged. Before `since` (a share of the training) the average simply
follows the weights.

References: gowal2020uncovering
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rkd.plugin import Run, hookimpl, move_average

from ._average import Average


@dataclass
class Ema:
    """Exponential moving average of the weights (EMA): evaluated and kept instead of the last ones."""

    decay: float = 0.995
    since: float = 0.0

    _average: Average = field(default_factory=Average, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay:g}")
        if not 0 <= self.since <= 1:
            raise ValueError(f"since is a share of the training in [0, 1], got {self.since:g}")

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        self._average.start(run)

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        share = 1 - self.decay if run.progress >= self.since else 1.0
        move_average(self._average.student.net, run.student.net, share)

    @hookimpl
    def rkd_eval_net(self, run: Run) -> nn.Module | None:
        return self._average.deployed()

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._average.load_state_dict(state["average"])


@hookimpl
def rkd_extensions():
    return {"ema": Ema}

"""SWA: evaluate and keep the mean of the weights after each epoch that begins at `since` (a share of the training) or
later.

    average <- average + (weights - average) / (n + 1)        after an epoch's last update, n epochs averaged before

Running statistics of batch norm belong to weights, and those of an average were never seen: before it is validated or
evaluated they are computed anew, as the mean over one epoch's batches of augmented training images, clean and in train
mode (`torch.optim.swa_utils.update_bn`); that costs one forward of the training images. Until the first mean the
student itself is evaluated. An epoch whose last batch is skipped (`--on-nan skip`) does not count.

Izmailov et al. average in the last quarter of a training with a high learning rate; Chen et al. (2021), who keep robust
overfitting away with it, from epoch 55 of 200 on with the usual drops, which is the default here. Their code weighs
batches by their size, here a last, smaller batch takes no part. Of several processes each takes its share of whole
batches, and the mean is over all of them, as if there were one.

References: izmailov2018averaging, chen2021robust
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from rkd.plugin import Run, forked, hookimpl, key, move_average

from ._average import Average

LARGEST = 256
"""Images of a forward for the statistics: batches of many processes together may be too large for one."""


@dataclass
class Swa:
    """Stochastic weight averaging (SWA, 2018): the mean of the weights after each epoch, evaluated and kept."""

    since: float = 55 / 200

    _average: Average = field(default_factory=Average, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)
    """How many epochs' weights the average is the mean of."""
    _epoch: int = field(default=0, init=False, repr=False)
    """The last of these epochs."""
    _known: bool = field(default=False, init=False, repr=False)
    """Whether the running statistics are those of the average."""

    def __post_init__(self) -> None:
        if not 0 <= self.since < 1:
            raise ValueError(f"since is a share of the training in [0, 1), got {self.since:g}")

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        self._average.start(run)

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        if run.state.batch + 1 == len(run.loader) and run.state.epoch / run.epochs >= self.since:
            move_average(self._average.student.net, run.student.net, 1 / (self._count + 1))
            self._count, self._epoch, self._known = self._count + 1, run.state.epoch, False

    @hookimpl
    def rkd_eval_net(self, run: Run) -> nn.Module | None:
        if self._count == 0:
            return None
        if not self._known:
            self._compute_statistics(run)
            self._known = True
        return self._average.deployed()

    def _compute_statistics(self, run: Run) -> None:
        # Drawn from (seed, epoch): whoever goes on with a run computes the same.
        draw, net, ranks = key(run.seed, "swa", self._epoch), self._average.student.net, run.ranks
        images, size = len(run.loader.split), min(run.loader.batch_size, LARGEST)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(draw))
        batches = order[: images - images % size].split(size)
        mine = batches[ranks.rank :: int(ranks.sum(torch.ones(1)))]
        with forked(draw, run.device):  # dropout
            update_bn((run.loader.batch(rows, self._epoch).x for rows in mine), net)
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(ranks.sum(buffer * (len(mine) / len(batches))))
            elif name.endswith("num_batches_tracked"):
                buffer.copy_(ranks.sum(buffer))

    def state_dict(self) -> dict[str, Any]:
        average = self._average.state_dict()
        return {"average": average, "count": self._count, "epoch": self._epoch, "known": self._known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._average.load_state_dict(state["average"])
        self._count, self._epoch, self._known = state["count"], state["epoch"], state["known"]


@hookimpl
def rkd_extensions():
    return {"swa": Swa}

"""Divergence: a loss or a weight that is not finite is found within a step, before it reaches a checkpoint.

On the CPU every step is looked at when it is done. On a GPU that would make the processor wait for each step; with
`stop` the answer is fetched one step later, when it is there anyway, and always before a checkpoint is written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..core.errors import TrainingFailed
from ..core.types import Batch
from ..data.prefetch import HostCopy
from ..storage.serialize import finite

if TYPE_CHECKING:
    from ..core.trainer import Run

OnNan = Literal["stop", "skip", "rollback"]
"""What to do about a step whose loss or weights are not finite: end the run, undo the step and go on with the next
batch, or go back to the start of the epoch and halve the learning rate."""

MOST_ROLLBACKS = 5

ADVICE = "Try a smaller learning rate (--lr), or --set optimizer.clip_gradient=1"


@dataclass(frozen=True, slots=True)
class Seen:
    """A step as it was, for words about it."""

    epoch: int
    batch_number: int
    index: Tensor
    loss: Tensor
    terms: dict[str, Tensor]
    finite: HostCopy
    """`(2,)` bool: the loss, the weights."""


class Guard:
    """Looks at each step of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pending: Seen | None = None
        self.kept: dict[str, Any] | None = None

    def before(self) -> None:
        """A step is about to begin."""
        if self.run.on_nan == "skip":
            self.kept = self._snapshot()

    def after(self, batch: Batch) -> bool:
        """A step is done. Whether it stands; if not, all is as before it. Raises TrainingFailed, RolledBack."""
        before, self.pending = self.pending, self._look(batch)
        if self.run.on_nan == "stop" and self.run.device.type != "cpu":
            if before is not None:
                self._judge(before)
            return True
        return self._settle()

    def settle(self) -> None:
        """Wait for what is still open. Raises TrainingFailed."""
        self._settle()

    def _settle(self) -> bool:
        seen, self.pending = self.pending, None
        return seen is None or self._judge(seen)

    def _look(self, batch: Batch) -> Seen:
        run = self.run
        # The fastest number that no NaN or infinity leaves finite: 2 ms for 11 million weights on one core, 150 for the
        # largest of them. It overflows for huge finite weights too, so an alarm is checked (`_judge`).
        size = nn.utils.get_total_norm(_floats(run.student.net))
        loss = run.loss_value.detach().reshape(()).to(size.device)
        flags = torch.stack([loss.isfinite(), size.isfinite()])
        return Seen(run.epoch, run.batch_number, batch.index, loss, run.terms, HostCopy(flags))

    def _judge(self, seen: Seen) -> bool:
        loss_is_fine, weights_are_fine = seen.finite.get().tolist()
        broken = [] if weights_are_fine else self._broken()
        if loss_is_fine and not broken:
            return True
        what = self._words(seen, loss_is_fine, broken)
        if self.run.on_nan == "skip":
            self._skip(what)
            return False
        if self.run.on_nan == "rollback" and self.run.epoch_start is not None:
            if self.run.rollbacks >= MOST_ROLLBACKS:
                raise TrainingFailed(f"{what}, after {MOST_ROLLBACKS} rollbacks{self._last_good()}. {ADVICE}")
            raise RolledBack(what)
        raise TrainingFailed(f"{what}{self._last_good()}. {ADVICE}")

    def _broken(self) -> list[str]:
        """Names of weights and running statistics that are not finite."""
        net = self.run.student.net
        return [n for n, t in [*net.named_parameters(), *net.named_buffers()] if not finite({n: t.detach()})]

    def _words(self, seen: Seen, loss_is_fine: bool, broken: list[str]) -> str:
        where = f"epoch {seen.epoch}, batch {seen.batch_number}"
        positions = seen.index.tolist()
        images = ", ".join(map(str, positions[:8])) + (", ..." if len(positions) > 8 else "")
        terms = ", ".join(f"{name} = {float(term.mean()):g}" for name, term in seen.terms.items())
        if not loss_is_fine:
            return f"the loss became {float(seen.loss):g} in {where} ({terms}; images {images} of the training part)"
        which = f": {broken[0]}" + (f" and {len(broken) - 1} more" if len(broken) > 1 else "")
        return (
            f"a weight is no longer finite after {where}, though the loss was{which} "
            f"({terms}; images {images} of the training part)"
        )

    def _last_good(self) -> str:
        folder = self.run.folder
        return f"; the last good state is {folder.last}" if folder and folder.last.exists() else ""

    def _snapshot(self) -> dict[str, Any]:
        run = self.run
        return copy.deepcopy({
            "student": run.student.net.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedulers": {n: dict(s.state_dict()) for n, s in run.schedulers.items() if hasattr(s, "state_dict")},
            "knobs": run.knobs,
        })  # fmt: skip

    def _skip(self, what: str) -> None:
        run, kept = self.run, self.kept
        assert kept is not None
        run.student.net.load_state_dict(kept["student"])
        run.optimizer.load_state_dict(kept["optimizer"])
        for name, state in kept["schedulers"].items():
            run.schedulers[name].load_state_dict(state)
        run.knobs = kept["knobs"]
        run.skipped += 1
        most = max(10, len(run.loader) // 10)
        if run.skipped > most:
            raise TrainingFailed(
                f"{what}; {most} batches of this epoch were skipped before{self._last_good()}. {ADVICE}"
            )
        run.hooks.hook.rkd_notice(run=run, text=f"{what}: the step was undone and the batch skipped")


class RolledBack(Exception):
    """The epoch has to be begun again."""


def _floats(net: nn.Module) -> list[Tensor]:
    return [t.detach() for t in [*net.parameters(), *net.buffers()] if t.is_floating_point() and t.numel()]

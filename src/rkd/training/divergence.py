"""Divergence: a loss or a weight that is not finite is noticed within a step, before it reaches a checkpoint.

On the CPU every step is looked at when it is done. On a GPU that would make the processor wait for each step; with
`stop` the answer is fetched one step later, when it is there anyway, and always before a checkpoint is written.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.errors import Refused, TrainingFailed
from ..core.objective import loss_terms, scheduled
from ..core.random import forked, key
from ..core.run import Monitor, RestartEpoch, Run
from ..core.types import Batch
from ..data.prefetch import HostCopy
from ..distributed.ranks import ALONE, Ranks
from ..storage.serialize import finite
from .dry_run import trial_of, with_few_steps

OnNan = Literal["stop", "skip", "rollback"]
"""What to do about a step whose loss or weights are not finite: end the run, undo the step and go on with the next
batch, or go back to the start of the epoch and halve the learning rate."""

MAX_ROLLBACKS = 5

ADVICE = (
    "Try a smaller learning rate (--lr), one that rises first (--set 'optimizer.schedule=points(0:0, 0.1:1, 1:0)'), or "
    "--set optimizer.clip_gradient=1; --on-nan rollback halves the rate by itself"
)


@dataclass(frozen=True, slots=True)
class _Observed:
    """A step as it was, for words about it."""

    epoch: int
    batch: int
    index: Tensor
    loss: Tensor
    terms: dict[str, Tensor]
    rate: float
    """The learning rate."""
    finite: HostCopy
    """`(2,)` bool: the loss, the weights."""


def check_alike(run: Run, ranks: Ranks) -> None:
    """One step on copies, of each process on two images of its own. Raises Refused where schedulers then set different
    values: of a training they would each weigh their part in their own way. Called by all processes alike."""
    if ranks.size == 1:
        return
    trial = replace(trial_of(with_few_steps(run)), ranks=run.ranks)
    batch = run.loader.batch((2 * ranks.rank + torch.arange(2)) % len(run.loader.split), 0)
    with forked(key(run.seed, "alike"), run.device):
        step = trial.step(batch)
        trial.state.knobs.update(scheduled(trial.schedulers, step, loss_terms(trial.loss, step)))
    if problem := _apart(trial.state.knobs, ranks):
        raise Refused(problem)


def _apart(knobs: Mapping[str, Any], ranks: Ranks) -> str:
    """What is wrong where processes hold different values; "" where nothing is."""
    if ranks.size == 1:
        return ""
    mine = {name: torch.as_tensor(value).detach().cpu() for name, value in knobs.items()}
    for other in ranks.objects(mine):
        if differing := [n for n in mine | other if n not in mine or n not in other or not mine[n].equal(other[n])]:
            return (
                f"the processes hold different values of {', '.join(differing[:3])}: a scheduler or extension that "
                "sets them must add up what it sees over the processes (run.ranks.sum)"
            )
    return ""


@dataclass
class DivergenceMonitor(Monitor):
    """Looks at the loss and the weights after each step."""

    on_nan: OnNan = "stop"
    ranks: Ranks = ALONE
    _pending: _Observed | None = field(default=None, init=False, repr=False)
    _before: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def start_epoch(self, run: Run) -> None:
        if self.on_nan == "rollback" and run.state.batch == 0:
            run.state.epoch_start = copied(run.state_dict() | {"epoch_start": None})

    def before(self, run: Run) -> None:
        if self.on_nan == "skip":
            self._before = copy.deepcopy({
                "nets": {name: net.state_dict() for name, net in run.nets.items()},
                "optimizer": run.optimizer.state_dict(),
                "schedulers": {name: dict(scheduler.state_dict()) for name, scheduler in run.schedulers.items()},
                "knobs": run.state.knobs,
            })  # fmt: skip

    def after(self, run: Run, batch: Batch) -> bool:
        if run.state.batch == 0:
            self._check_knobs(run)
        previous, self._pending = self._pending, self._observe(run, batch)
        if self.on_nan == "stop" and run.device.type != "cpu":
            if previous is not None:
                self._judge(run, previous)
            return True
        return self._settle(run)

    def settle(self, run: Run) -> None:
        self._settle(run)

    def end_epoch(self, run: Run) -> None:
        self._settle(run)
        self._check_knobs(run)
        epoch = run.state.epoch + 1
        if run.state.means.steps == 0:
            raise TrainingFailed(f"the training diverged: every batch of epoch {epoch} was skipped. {ADVICE}")
        state = {
            f"{net}.{name}": value for net, module in run.nets.items() for name, value in module.state_dict().items()
        }
        if names := self.ranks.same(state):
            raise TrainingFailed(
                f"after epoch {epoch} the processes hold different weights ({', '.join(names[:3])}): a loss, scheduler "
                "or extension uses something that differs among them, or the net keeps statistics that are no norm's"
            )

    def _check_knobs(self, run: Run) -> None:
        """Gradients are summed over the processes: weights stay the same, whatever each of them weighs samples by."""
        if problem := _apart(run.state.knobs, self.ranks):
            raise TrainingFailed(problem)

    def _settle(self, run: Run) -> bool:
        step, self._pending = self._pending, None
        return step is None or self._judge(run, step)

    def _observe(self, run: Run, batch: Batch) -> _Observed:
        # The fastest number that no NaN or infinity leaves finite: 2 ms for 11 million weights on one core, 150 for the
        # largest of them. It overflows for huge finite weights too, so an alarm is checked (`_judge`).
        size = nn.utils.get_total_norm([tensor for net in run.nets.values() for tensor in _floats(net)])
        loss = run.loss_value.detach().reshape(()).to(size.device)
        flags = torch.stack([loss.isfinite(), size.isfinite()])
        return _Observed(run.state.epoch, run.state.batch, batch.index, loss, run.terms, _rate(run), HostCopy(flags))

    def _judge(self, run: Run, step: _Observed) -> bool:
        """Whether a step stands. Raises TrainingFailed, RestartEpoch."""
        loss_is_finite, weights_are_finite = step.finite.get().tolist()
        broken = [] if weights_are_finite else _broken(run.nets)
        if loss_is_finite and not broken:
            return True
        problem = f"{_diverged(run, step.rate)}: {_words(step, loss_is_finite, broken)}"
        if self.on_nan == "skip" and self._before is not None:
            self._undo(run, self._before, problem)
            return False
        if self.on_nan == "rollback" and run.state.epoch_start is not None:
            self._roll_back(run, run.state.epoch_start, problem)
        raise TrainingFailed(f"{problem}{_last_good(run)}. {ADVICE}")

    def _undo(self, run: Run, before: Mapping[str, Any], problem: str) -> None:
        for name, net in run.nets.items():
            net.load_state_dict(before["nets"][name])
        run.optimizer.load_state_dict(before["optimizer"])
        for name, state in before["schedulers"].items():
            run.schedulers[name].load_state_dict(state)
        run.state.knobs = before["knobs"]
        run.state.skipped += 1
        limit = max(10, len(run.loader) // 10)
        if run.state.skipped > limit:
            raise TrainingFailed(
                f"{problem}; {limit} batches of this epoch were skipped before{_last_good(run)}. {ADVICE}"
            )
        run.hooks.hook.rkd_notice(run=run, text=f"{problem}: the step was undone and the batch skipped")

    def _roll_back(self, run: Run, start: Mapping[str, Any], problem: str) -> None:
        rollbacks = run.state.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            raise TrainingFailed(f"{problem}, after {MAX_ROLLBACKS} rollbacks{_last_good(run)}. {ADVICE}")
        run.load_state_dict(copied(start))
        run.state.rollbacks = rollbacks
        run.hooks.hook.rkd_notice(
            run=run,
            text=f"{problem}: back to the start of the epoch, the learning rate halved ({rollbacks}x)",
        )
        raise RestartEpoch


def diverged(run: Run, problem: str) -> TrainingFailed:
    """The error of a training whose net gives no numbers any more, noticed after the steps of an epoch."""
    epoch = min(run.state.epoch + 1, run.epochs)
    return TrainingFailed(
        f"{_diverged(run, _rate(run))}, in epoch {epoch} of {run.epochs}: {problem}{_last_good(run)}. {ADVICE}"
    )


def _rate(run: Run) -> float:
    return float(run.optimizer.param_groups[0]["lr"])


def _diverged(run: Run, rate: float) -> str:
    return f"the training diverged at a learning rate of {rate:g} (it began at {run.lr:g})"


def copied(value: Any) -> Any:
    """A nested state that later steps do not reach."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(inner) for inner in value]
    return value


def _broken(nets: Mapping[str, nn.Module]) -> list[str]:
    """Names of weights and running statistics that are not finite; a companion's with its name before them."""
    return [
        n if one == "student" else f"{n} of the companion {one}"
        for one, net in nets.items()
        for n, t in [*net.named_parameters(), *net.named_buffers()]
        if not finite({n: t.detach()})
    ]


def _words(step: _Observed, loss_is_finite: bool, broken: list[str]) -> str:
    where = f"epoch {step.epoch + 1}, batch {step.batch + 1}"
    positions = step.index.tolist()
    images = ", ".join(map(str, positions[:8])) + (", ..." if len(positions) > 8 else "")
    terms = ", ".join(f"{name} = {float(term.mean()):g}" for name, term in step.terms.items())
    if not loss_is_finite:
        return f"the loss became {float(step.loss):g} in {where} ({terms}; images {images} of the training part)"
    which = f": {broken[0]}" + (f" and {len(broken) - 1} more" if len(broken) > 1 else "")
    return (
        f"a weight is no longer finite after {where}, though the loss was{which} "
        f"({terms}; images {images} of the training part)"
    )


def _last_good(run: Run) -> str:
    return f"; the last good state is {run.checkpoints.newest}" if run.checkpoints.newest else ""


def _floats(net: nn.Module) -> list[Tensor]:
    return [t.detach() for t in [*net.parameters(), *net.buffers()] if t.is_floating_point() and t.numel()]

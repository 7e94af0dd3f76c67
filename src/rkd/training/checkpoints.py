"""What a checkpoint holds of a run, and when one is written.

Random numbers have no state: batches, augmentations, attacks and dropout follow from (seed, epoch, batch, sample). What
has one is in `state_of`: student, optimiser, schedulers, extensions, values set by schedulers, the place in the epoch
with the sums of its losses so far, the learning rate's factor, what has been measured, the best weights so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import DataError, Stopped

if TYPE_CHECKING:
    from ..core.trainer import Run


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint after every `epochs`-th epoch and the last one, and whenever `minutes` have passed since the one
    before (None: only then). `keep` of them are kept while the run goes on."""

    epochs: int = 1
    minutes: float | None = 10.0
    keep: int = 2


def state_of(run: Run) -> dict[str, Any]:
    """All that a later process needs to go on after this step."""
    return {
        "data": run.data.fingerprint,
        "epoch": run.epoch,
        "done": run.done,
        "batches": len(run.loader),
        "meter": run.meter.state_dict(),
        "skipped": run.skipped,
        "rollbacks": run.rollbacks,
        "epoch_start": run.epoch_start,
        "seconds": run.seconds,
        "student": run.student.net.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "schedulers": {n: dict(s.state_dict()) for n, s in run.schedulers.items() if hasattr(s, "state_dict")},
        "extensions": {
            name: dict(plugin.state_dict())
            for name, plugin in run.hooks.list_name_plugin()
            if plugin is not None and hasattr(plugin, "state_dict")
        },
        "knobs": run.knobs,
        "history": run.history,
        "best": run.best,
        "best_weights": run.best_weights,
    }


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Go on where `state` was taken. Raises DataError if the data is not what it was."""
    if state["data"] != run.data.fingerprint:
        raise DataError(
            f"the data set {run.data.name!r} has changed since this run began (fingerprint {state['data']!r} then, "
            f"{run.data.fingerprint!r} now): put the old data back, or start a new run"
        )
    if state["batches"] != len(run.loader):
        raise ValueError(f"an epoch had {state['batches']} steps then, and has {len(run.loader)} now")
    run.epoch, run.done, run.batch_number = state["epoch"], state["done"], 0
    run.meter.load_state_dict(state["meter"])
    run.skipped, run.rollbacks = state["skipped"], state["rollbacks"]
    run.epoch_start = state["epoch_start"]
    run.seconds = state["seconds"]
    run.student.net.load_state_dict(state["student"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    for name, scheduler in run.schedulers.items():
        if name in state["schedulers"]:
            scheduler.load_state_dict(state["schedulers"][name])
    for name, extension in run.hooks.list_name_plugin():
        load = getattr(extension, "load_state_dict", None)
        if load is not None and name in state["extensions"]:
            load(state["extensions"][name])
    run.knobs = {name: _on(value, run.device) for name, value in state["knobs"].items()}
    run.history = list(state["history"])
    run.best, run.best_weights = state["best"], state["best_weights"]


def copied(value: Any) -> Any:
    """A nested state that later steps do not reach."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(inner) for inner in value]
    return value


class Keeper:
    """Writes a run's checkpoints. Clocks that jump do not matter: it asks the monotonic one."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.written = time.monotonic()
        self.since = time.monotonic() - run.seconds

    def save(self) -> None:
        run = self.run
        run.seconds = time.monotonic() - self.since
        if run.folder:
            run.folder.save(state_of(run), run.saving.keep)
        self.written = time.monotonic()

    def due(self) -> bool:
        """Whether the time for a checkpoint within an epoch has come."""
        minutes = self.run.saving.minutes
        return minutes is not None and time.monotonic() - self.written >= 60 * minutes

    def epoch_over(self) -> None:
        """A checkpoint, if this epoch is to have one. `run.epoch` counts finished epochs."""
        run = self.run
        if run.epoch % run.saving.epochs == 0 or run.epoch == run.epochs or self.due():
            self.save()

    def obey(self, settle: Callable[[], None] | None = None) -> None:
        """If somebody wants the run to stop: save, and raise Stopped. `settle` raises if the state is not sound."""
        if self.run.ranks.any(bool(self.run.hooks.hook.rkd_stop(run=self.run))):
            if settle is not None:
                settle()
            self.save()
            self.run.ranks.objects(None)  # whoever tells of it finds the checkpoint written
            raise Stopped(f"stopped after {place_of(self.run.epoch, self.run.done, len(self.run.loader))}")


def place_of(epoch: int, done: int, batches: int) -> str:
    """`epoch 3`, or `step 5/21 of epoch 4`: what a state comes after. Epochs are counted from 1 here."""
    return f"step {done}/{batches} of epoch {epoch + 1}" if done else f"epoch {epoch}"


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value

"""When a run's state is written (`rkd.core.run.Run.state_dict` says what it holds), and how a run is asked to stop."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import Stopped
from ..core.run import Checkpoints, Run
from ..distributed.ranks import ALONE, Ranks
from ..storage.runfolder import RunFolder


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """A checkpoint after every `epochs`-th epoch and the last one, and whenever `minutes` have passed since the one
    before (None: only then). `keep` of them are kept while the run goes on."""

    epochs: int = 1
    minutes: float | None = 10.0
    keep: int = 2


@dataclass
class Checkpointer(Checkpoints):
    """Writes a run's checkpoints and records into `folder`; None: it writes nothing.

    Clocks that jump do not matter: it asks the monotonic one.
    """

    folder: RunFolder | None = None
    policy: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    ranks: Ranks = ALONE
    config: str = ""
    """The text of the run's config.toml, which a run that goes on is compared with."""
    replaces: str | None = None
    """Digest of the config.toml that `config` takes the place of, until it has done so."""
    _written: float = field(default_factory=lambda: time.monotonic(), init=False, repr=False)

    @property
    def newest(self) -> Path | None:
        return self.folder.last if self.folder and self.folder.last.exists() else None

    def after_step(self, run: Run) -> None:
        if self._due():
            run.monitor.settle(run)
            self.save(run)
        self._stop_if_asked(run)

    def while_validating(self, run: Run) -> None:
        # Several processes would call this at different times: they stop together, after the validation.
        if self.ranks.size == 1:
            self._stop_if_asked(run)

    def new_best(self, run: Run) -> None:
        if self.folder and run.state.best_weights is not None:
            self.folder.save_weights(self.folder.best, run.state.best_weights)

    def after_epoch(self, run: Run) -> None:
        if self.folder:
            self.folder.log(run.state.history[-1])
        if run.state.epoch % self.policy.epochs == 0 or run.state.epoch == run.epochs or self._due():
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint now."""
        run.state.tick()
        if self.folder:
            known = {"config": self.config, "replaces": self.replaces}
            self.folder.save(known | run.state_dict(), self.policy.keep)
        self._written = time.monotonic()

    def _due(self) -> bool:
        """Whether the time for a checkpoint within an epoch has come."""
        return self.policy.minutes is not None and time.monotonic() - self._written >= 60 * self.policy.minutes

    def _stop_if_asked(self, run: Run) -> None:
        if self.ranks.any(bool(run.hooks.hook.rkd_stop(run=run))):
            run.monitor.settle(run)
            self.save(run)
            self.ranks.objects(None)  # whoever tells of it finds the checkpoint written
            raise Stopped(f"stopped after {place_of(run.state.epoch, run.state.batch, len(run.loader))}")


def place_of(epoch: int, done: int, batches: int) -> str:
    """`epoch 3`, or `step 5/21 of epoch 4`: what a state comes after. Epochs are counted from 1 here."""
    return f"step {done}/{batches} of epoch {epoch + 1}" if done else f"epoch {epoch}"

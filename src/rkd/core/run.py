"""Run: the parts of one training. TrainState: how far it has come, which is what a checkpoint holds beside the nets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pluggy
import torch
from torch import Tensor, nn

from .errors import DataError
from .interfaces import Loss, Scheduler, Stateful, Student, Teacher
from .objective import loss_terms, scheduled, weight_of, weighted
from .random import key
from .step import AttackPlan, Step
from .traits import LossTraits, declared
from .types import Batch, Schedule, Shape, ThreatModel, View, at


class DataInfo(Protocol):
    """What a training must know of its data set; `rkd.data.dataset.Dataset` is one."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def threat(self) -> ThreatModel: ...
    @property
    def fingerprint(self) -> str:
        """Changes when the data changes."""


class Batches(Protocol):
    """The batches of each epoch; `rkd.data.loader.Loader` makes them of a split."""

    batch_size: int

    @property
    def split(self) -> Sized:
        """The images, which are `len` many."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def size(self, number: int) -> int:
        """Images of an epoch's batch `number`, over all processes."""

    def batch(self, index: Tensor, epoch: int) -> Batch:
        """The augmented batch of the images at `index (B,)`."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""


class Processes:
    """The processes that train together. This one is alone; `rkd.distributed.ranks` has others."""

    rank = 0
    """This process's number: its dropout draws other numbers than the others'."""

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over all processes, who must all ask for it: what a scheduler counts is counted in its own part of
        each batch."""
        return mine

    def counted(self, samples: int) -> bool:
        """Whether what this process sees of a batch counts in such a sum: its own part does, and of a batch of so few
        `samples` that all do it whole, the first one's."""
        return True


class Backward:
    """Turns a step into gradients, and gradients into new weights: here with one forward and one backward of the whole
    batch. `rkd.training.accumulation.Accumulation` is another one."""

    def __call__(self, run: Run, step: Step, again: bool = False) -> Tensor:
        """Add the gradient of the step's loss to the parameters' `.grad`. Returns the loss, a scalar, detached.

        `again`: a second look at the step, with the weights moved (AWP): the student's logits are computed anew, images
        and teachers' logits are kept, and no scheduler is asked a second time.
        """
        loss = run.total_loss(step.fresh() if again else step, again)
        torch.autograd.backward(loss)
        return loss.detach()

    def update(self, run: Run) -> None:
        """Let the optimiser move the weights by the gradients, clipped to `run.clip_gradient`."""
        clip_gradients(run)
        run.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Monitor:
    """Looks at every step, and may undo it. This one does nothing; `rkd.training.divergence` has one that does."""

    def start_epoch(self, run: Run) -> None:
        """The steps of an epoch, or what is left of them, are about to begin."""

    def before(self, run: Run) -> None:
        """A step is about to begin."""

    def after(self, run: Run, batch: Batch) -> bool:
        """A step is done. Whether it stands: if not, all is as before it. Raises TrainingFailed, RestartEpoch."""
        return True

    def settle(self, run: Run) -> None:
        """Finish whatever is still open, before the state is saved. Raises TrainingFailed."""

    def end_epoch(self, run: Run) -> None:
        """The steps of an epoch are over. Raises TrainingFailed."""


class RestartEpoch(Exception):
    """A monitor has gone back to the state at the start of the epoch."""


class Checkpoints:
    """Saves the state of a run, and ends a run that is asked to stop (hook `rkd_stop`). This one does neither;
    `rkd.training.checkpoints` has one that does."""

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint's file, if there is one."""
        return None

    def after_step(self, run: Run) -> None:
        """Save if it is time to. Raises Stopped, with the state saved, if the run shall stop."""

    def while_validating(self, run: Run) -> None:
        """Between two batches of a validation: raises Stopped as `after_step` does."""

    def new_best(self, run: Run) -> None:
        """`run.state.best` and `best_weights` are new."""

    def after_epoch(self, run: Run) -> None:
        """An epoch is over, and its record is the last of `run.state.history`."""


class RunningMeans:
    """Sums of named numbers over the steps of an epoch, kept on the device where they are until somebody asks."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's numbers, scalars on the device."""
        for name, value in values.items():
            value = value.detach().reshape(()).float()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Each number's sum over the steps so far, divided by their count. Waits for the device."""
        return {name: float(value) / self.steps for name, value in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.sums = state["steps"], dict(state["sums"])


@dataclass
class TrainState:
    """How far a training has come. With the nets', optimiser's, schedulers' and extensions' own states
    (`Run.state_dict`) it is all that a later process needs to go on; random numbers have no state, they follow from
    (seed, epoch, batch, sample)."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the epoch, and so the number of the one in hand."""
    skipped: int = 0
    """Batches of the epoch that were left out (`--on-nan skip`)."""
    rollbacks: int = 0
    """Times that an epoch was begun anew (`--on-nan rollback`); each halves the learning rate."""
    seconds: float = 0.0
    knobs: dict[str, Any] = field(default_factory=dict)
    """Values that schedulers have set, by name."""
    means: RunningMeans = field(default_factory=RunningMeans)
    """Of the epoch's losses so far."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The record of each finished epoch."""
    best: dict[str, Any] | None = None
    """Epoch and score of the weights that a validation has chosen."""
    best_weights: dict[str, Tensor] | None = None
    epoch_start: dict[str, Any] | None = None
    """A whole state at the start of the epoch, where a monitor wants to go back to it."""

    _clock: float = field(default_factory=lambda: time.monotonic(), repr=False)

    def start_clock(self) -> None:
        """From here on `tick` adds to `seconds`."""
        self._clock = time.monotonic() - self.seconds

    def tick(self) -> float:
        """The seconds that the training has taken so far."""
        self.seconds = time.monotonic() - self._clock
        return self.seconds

    def state_dict(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("batch", "means", "_clock")}
        return {**kept, "done": self.batch, "meter": self.means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state` was taken; values of schedulers go to `device`."""
        self.epoch, self.batch = state["epoch"], state["done"]
        self.means.load_state_dict(state["meter"])
        for name in ("skipped", "rollbacks", "epoch_start", "seconds", "best", "best_weights"):
            setattr(self, name, state[name])
        self.knobs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in state["knobs"].items()}
        self.history = list(state["history"])


@dataclass
class Run:
    """The parts of one training, and its state. The learning rate is `lr * lr_schedule(progress)`, halved for each
    rollback. A trial of the same parts is another Run with a state of its own."""

    student: Student
    loss: Loss
    loader: Batches
    data: DataInfo
    optimizer: torch.optim.Optimizer
    epochs: int
    hooks: pluggy.PluginManager
    seed: int = 0
    lr: float = 0.1
    lr_schedule: Schedule = 1.0
    clip_gradient: float | None = None
    """The gradient's largest norm; None: any."""
    teachers: dict[str, Teacher] = field(default_factory=dict)
    companions: dict[str, Student] = field(default_factory=dict)
    """Nets beside the student; the optimiser has the weights of those that learn."""
    attacks: dict[View, AttackPlan] = field(default_factory=dict)
    schedulers: dict[str, Scheduler] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Processes = field(default_factory=Processes)
    folder: Path | None = None
    """The run's own, with its config.toml and later its results; None: it is kept nowhere."""

    backward: Backward = field(default_factory=Backward)
    monitor: Monitor = field(default_factory=Monitor)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    validate: Callable[[Run], Mapping[str, Any]] | None = None
    """Measures the net after an epoch, may choose the weights to keep, and returns metrics for the epoch's record.
    None: nothing is measured, and the last weights are kept."""
    state: TrainState = field(default_factory=TrainState)

    terms: dict[str, Tensor] = field(default_factory=dict)
    """The loss's terms of the last step, `(B,)` each, detached."""
    loss_value: Tensor = field(default_factory=lambda: torch.zeros(()))
    """The loss of the last step, a scalar, detached."""

    @property
    def nets(self) -> dict[str, nn.Module]:
        """The nets that a step may change: the student's, and the companions' by name."""
        return {"student": self.student.net, **{name: companion.net for name, companion in self.companions.items()}}

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]."""
        return self._progress_at(self.state.batch)

    @property
    def lr_scale(self) -> float:
        """The learning rate now as a share of `lr`."""
        return self._lr_scale_at(self.progress)

    def step(self, batch: Batch) -> Step:
        """The Step of a batch at the run's present state, whose attacks are told to whoever listens."""
        hook = self.hooks.hook.rkd_attack_query
        heard = bool(hook.get_hookimpls()) and self.ranks.counted(self.loader.size(self.state.batch))

        def tell(step: Step, view: View, rows: Tensor | None, query: int, logits: Tensor) -> None:
            hook(step=step, view=view, rows=rows, query=query, logits=logits)

        def tell_end(step: Step, view: View, images: Tensor) -> None:
            self.hooks.hook.rkd_attack_end(step=step, view=view, images=images)

        traits = declared(self.loss, LossTraits)
        return Step(
            batch,
            self.student,
            self.teachers,
            self.attacks,
            companions=self.companions,
            views=traits.derived_views,
            targets=traits.targets,
            threat=self.data.threat,
            # A copy: values set during this step act in the next one, also if the loss is computed again (AWP).
            knobs=dict(self.state.knobs),
            progress=self.progress,
            lr_scale=self.lr_scale,
            noise_key=key(self.seed, "step", self.state.epoch, self.state.batch),
            on_query=tell if heard else None,
            on_end=tell_end,
        )

    def total_loss(self, step: Step, again: bool = False) -> Tensor:
        """The loss of a step, a scalar: terms -> schedulers, but not `again` -> weights (`rkd.core.objective`)."""
        terms = loss_terms(self.loss, step)
        if not again:
            self.state.knobs.update(scheduled(self.schedulers, step, terms))
            self.terms = {name: term.detach() for name, term in terms.items()}
        return weighted(self.loss, self.state.knobs, step, terms)

    def eval_net(self) -> nn.Module:
        """The net to evaluate and keep: an extension's average, or the student's own without auxiliary norms."""
        net: nn.Module | None = self.hooks.hook.rkd_eval_net(run=self)
        return net or self.student.deployed()

    def epoch_metrics(self) -> dict[str, Any]:
        """The record of the epoch whose steps are over: means of the losses, and the last step's rate and weights."""
        state = self.state
        progress = self._progress_at(len(self.loader) - 1)
        means = state.means.means()
        metrics: dict[str, Any] = {"epoch": state.epoch, "lr": self.lr * self._lr_scale_at(progress), **means}
        terms = [name.removeprefix("loss.") for name in means if name != "loss"]
        metrics |= {f"weight.{n}": float(weight_of(self.loss, state.knobs, n, progress)) for n in terms}
        metrics |= {
            name: float(value)
            for name, value in state.knobs.items()
            if not name.startswith("weight.") and (not isinstance(value, Tensor) or value.numel() == 1)
        }
        return metrics | ({"skipped": state.skipped} if state.skipped else {})

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on after this step."""
        return {
            "data": self.data.fingerprint,
            "batches": len(self.loader),
            **self.state.state_dict(),
            "student": self.student.net.state_dict(),
            "companions": {name: companion.net.state_dict() for name, companion in self.companions.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.backward.state_dict(),
            **{kind: {n: dict(p.state_dict()) for n, p in parts.items()} for kind, parts in self._stateful().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError if the data is not what it was."""
        if state["data"] != self.data.fingerprint:
            raise DataError(
                f"the data set {self.data.name!r} has changed since this run began (fingerprint {state['data']!r} "
                f"then, {self.data.fingerprint!r} now): put the old data back, or start a new run"
            )
        if state["batches"] != len(self.loader):
            raise ValueError(f"an epoch had {state['batches']} steps then, and has {len(self.loader)} now")
        self.state.load_state_dict(state, self.device)
        for name, net in self.nets.items():
            net.load_state_dict(state["student"] if net is self.student.net else state["companions"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.backward.load_state_dict(state["scaler"])
        for kind, parts in self._stateful().items():
            for name in parts.keys() & state[kind].keys():
                parts[name].load_state_dict(state[kind][name])

    def _stateful(self) -> dict[str, dict[str, Stateful]]:
        own = {id(scheduler) for scheduler in self.schedulers.values()}  # some of them listen, too
        extensions = {n: p for n, p in self.hooks.list_name_plugin() if id(p) not in own and isinstance(p, Stateful)}
        return {"schedulers": dict(self.schedulers), "extensions": extensions}

    def _progress_at(self, batch: int) -> float:
        return (self.state.epoch + batch / len(self.loader)) / self.epochs

    def _lr_scale_at(self, progress: float) -> float:
        return at(self.lr_schedule, progress) * 0.5**self.state.rollbacks


def clip_gradients(run: Run) -> None:
    """Scale each net's gradient down to the norm `run.clip_gradient`, if it is longer."""
    if run.clip_gradient is not None:
        for net in run.nets.values():
            nn.utils.clip_grad_norm_(net.parameters(), run.clip_gradient)

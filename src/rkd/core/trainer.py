"""fit(): one explicit training loop. What tries a run before it starts is `dry`."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pluggy
import torch
from torch import Tensor, nn

from ..data.dataset import Dataset, Split
from ..data.loader import Loader
from ..distributed.ranks import ALONE, Ranks
from ..distributed.sync_batchnorm import synchronised
from ..evaluation.evaluate import EvalSettings, evaluate
from ..nets.memory_format import follow
from ..nets.memory_format import restore as as_kept
from ..nets.net import Net, NetStudent
from ..storage.runfolder import RunFolder
from ..storage.serialize import to_cpu
from ..training.checkpoints import Keeper, Saving, copied, restore, state_of
from ..training.divergence import ADVICE, Guard, OnNan, RolledBack
from ..training.metrics import Meter
from .errors import RkdError, TrainingFailed
from .hooks import RunHooks
from .interfaces import Loss, Scheduler, Teacher
from .objective import backward, share_gradients, weight
from .random import forked, key
from .step import AttackPlan, Step
from .types import Batch, Schedule, View, at


@dataclass(frozen=True, slots=True)
class Validation:
    """What is looked at after an epoch, on training images that are held out, and what chooses the weights kept."""

    split: Split
    attack: AttackPlan | None
    every: int = 1
    limit: int | None = None
    select: str = "w-robust"


@dataclass
class Run:
    """Everything that one training needs. `optimizer`'s learning rate is `lr * lr_schedule(progress)`, halved for
    each rollback. `done` batches of the epoch are over, `skipped` of them left out; `meter` has the others' losses."""

    student: NetStudent
    loss: Loss
    loader: Loader
    data: Dataset
    optimizer: torch.optim.Optimizer
    epochs: int
    seed: int = 0
    lr: float = 0.1
    lr_schedule: Schedule = 1.0
    clip_gradient: float | None = None
    grad_accumulation: int = 1
    """In how many parts a batch's gradient is computed: the memory of one part, the step of the whole batch."""
    teachers: dict[str, Teacher] = field(default_factory=dict)
    attacks: dict[View, AttackPlan] = field(default_factory=dict)
    schedulers: dict[str, Scheduler] = field(default_factory=dict)
    validation: Validation | None = None
    folder: RunFolder | None = None
    saving: Saving = field(default_factory=Saving)
    on_nan: OnNan = "stop"
    hooks: pluggy.PluginManager = field(default_factory=lambda: run_hooks())
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Ranks = ALONE
    sync_bn: bool = False
    """Batch norm over the samples of all processes, instead of each process's own as in the papers' scripts."""
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    """Keeps the weights' gradients within the range of float16."""

    epoch: int = 0
    batch_number: int = 0
    done: int = 0
    meter: Meter = field(default_factory=Meter)
    skipped: int = 0
    rollbacks: int = 0
    epoch_start: dict[str, Any] | None = None
    seconds: float = 0.0
    knobs: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)
    loss_value: Tensor = field(default_factory=lambda: torch.zeros(()))
    best: dict[str, Any] | None = None
    best_weights: dict[str, Tensor] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]."""
        return (self.epoch + self.batch_number / len(self.loader)) / self.epochs

    @property
    def lr_scale(self) -> float:
        """The learning rate now as a share of `lr`."""
        return at(self.lr_schedule, self.progress) * 0.5**self.rollbacks

    def step(self, batch: Batch, listen: bool = True) -> Step:
        """The Step of a batch at the run's present state."""
        queried = listen and self.hooks.hook.rkd_attack_query.get_hookimpls()
        step = Step(
            batch,
            self.student,
            self.teachers,
            self.attacks,
            threat=self.data.threat,
            # A copy: values set during this step act in the next one, also if the loss is computed again (AWP).
            knobs=dict(self.knobs),
            progress=self.progress,
            lr_scale=self.lr_scale,
            noise_key=key(self.seed, "step", self.epoch, self.batch_number),
            on_query=self._queried if queried else None,
        )
        step.synchronised = self.sync_bn and self.ranks.size > 1
        return step

    def eval_net(self) -> nn.Module:
        """The net to evaluate and keep: an extension's average, or the student's own without auxiliary norms."""
        return self.hooks.hook.rkd_eval_net(run=self) or self.student.deployed()

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on after this step."""
        return state_of(self)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError if the data has changed since."""
        restore(self, state)

    def _queried(self, step: Step, view: View, logits: Tensor) -> None:
        self.hooks.hook.rkd_attack_query(step=step, view=view, logits=logits)


def run_hooks(extensions: Mapping[str, Any] | None = None) -> pluggy.PluginManager:
    """A manager of run-time hooks with these configured extensions. Raises RkdError for a hook that does not exist."""
    manager = pluggy.PluginManager("rkd")
    manager.add_hookspecs(RunHooks)
    for name, extension in (extensions or {}).items():
        try:
            manager.register(extension, name=name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise RkdError(f"extension {name}: {error}") from None
    return manager


def fit(run: Run) -> None:
    """Train. Afterwards the student holds the chosen weights; `run.history` one record an epoch.

    Raises TrainingFailed when a loss or a weight is not finite (and `run.on_nan` does not help), Stopped when an
    extension asks for it. A run that ends in any other way goes on at its last checkpoint.
    """
    run.hooks.hook.rkd_run_start(run=run)
    guard, keeper = Guard(run), Keeper(run)
    while run.epoch < run.epochs:
        if run.on_nan == "rollback" and run.done == 0:
            run.epoch_start = copied({**state_of(run), "epoch_start": None})
        try:
            _epoch(run, guard, keeper)
        except RolledBack as error:
            _roll_back(run, str(error))
            continue
        metrics = _metrics(run)
        _validate(run, metrics, keeper)
        # The epoch number counts finished epochs from here on; its record is named by its own number.
        run.epoch, run.batch_number, run.done, run.skipped = run.epoch + 1, 0, 0, 0
        run.meter, run.epoch_start = Meter(), None
        metrics["seconds"] = round(time.monotonic() - keeper.since, 3)
        run.history.append(metrics)
        run.hooks.hook.rkd_epoch_end(run=run, metrics=metrics)
        if run.folder:
            run.folder.log(metrics)
        keeper.epoch_over()


def _epoch(run: Run, guard: Guard, keeper: Keeper) -> None:
    """The steps of an epoch that are left. Raises RolledBack."""
    for number, batch in enumerate(run.loader.batches(run.epoch, run.done), run.done):
        run.batch_number = number
        advance(run, batch, guard)
        if keeper.due():
            guard.settle()
            keeper.save()
        keeper.obey(guard.settle)
    guard.settle()


def _metrics(run: Run) -> dict[str, Any]:
    """The record of the epoch whose steps are over."""
    if run.meter.steps == 0:
        raise TrainingFailed(f"every batch of epoch {run.epoch} was skipped. {ADVICE}")
    if apart := run.ranks.same(run.student.net.state_dict()):
        raise TrainingFailed(
            f"after epoch {run.epoch} the processes hold different weights ({', '.join(apart[:3])}): a loss, scheduler "
            "or extension uses something that differs among them, or the net keeps statistics that are no norm's"
        )
    run.batch_number = len(run.loader) - 1
    means = run.meter.means()
    metrics: dict[str, Any] = {"epoch": run.epoch, "lr": run.lr * run.lr_scale, **means}
    terms = [name.removeprefix("loss.") for name in means if name != "loss"]
    metrics |= {f"weight.{name}": float(weight(run, name, run.progress)) for name in terms}
    metrics |= {
        name: float(value)
        for name, value in run.knobs.items()
        if not name.startswith("weight.") and (not isinstance(value, Tensor) or value.numel() == 1)
    }
    return metrics | ({"skipped": run.skipped} if run.skipped else {})


def _roll_back(run: Run, what: str) -> None:
    start, rollbacks = run.epoch_start, run.rollbacks + 1
    assert start is not None
    restore(run, copied(start))
    run.rollbacks = rollbacks
    run.hooks.hook.rkd_notice(
        run=run, text=f"{what}: back to the start of epoch {run.epoch}, the learning rate halved ({rollbacks}x)"
    )


def advance(run: Run, batch: Batch, guard: Guard) -> None:
    """All that an epoch does with a batch, `run.batch_number`. Raises TrainingFailed, RolledBack."""
    guard.before()
    rate = run.lr * run.lr_scale
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    # Dropout and its like draw from the global generator: here it follows from (seed, epoch, batch) too.
    # Each process has other samples, and so other numbers.
    process = (run.ranks.rank,) if run.ranks.rank else ()
    with forked(key(run.seed, "net", run.epoch, run.batch_number, *process), run.device):
        loss = update(run, batch)
    stands = guard.after(batch)
    run.done = run.batch_number + 1
    if stands:
        run.meter.add({"loss": loss, **{f"loss.{name}": term.mean() for name, term in run.terms.items()}})
        run.hooks.hook.rkd_after_update(run=run)


def update(run: Run, batch: Batch) -> Tensor:
    """One training step on a batch, or on this process's part of it: gradients, then the optimiser. Returns the whole
    batch's loss, detached."""
    step = run.step(batch)
    run.optimizer.zero_grad(set_to_none=True)
    run.loss_value = torch.zeros(())
    whole = run.ranks.size == 1 or not run.ranks.shared(run.loader.size(run.batch_number))
    with synchronised(run.ranks) if run.sync_bn and not whole else nullcontext():
        if not run.hooks.hook.rkd_backward(step=step):
            run.loss_value = backward(run, step)
    if run.ranks.size > 1:
        share_gradients(run, step)
    if run.clip_gradient is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.student.net.parameters(), run.clip_gradient)
    follow(run.optimizer)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return run.loss_value


def _validate(run: Run, metrics: dict[str, Any], keeper: Keeper) -> None:
    plan, finished = run.validation, run.epoch + 1
    if plan is None or (finished % plan.every and finished != run.epochs):
        return
    net = run.eval_net()
    result = evaluate(
        net,
        plan.split,
        {"adv": plan.attack} if plan.attack else {},
        EvalSettings(
            threat=run.data.threat,
            classes=len(run.data.classes),
            seed=run.seed,
            batch_size=max(-(-run.loader.batch_size // run.grad_accumulation), 128),
            limit=min(plan.limit, len(plan.split)) if plan.limit else None,
            device=run.device,
            # Several processes call their progress at different times: they stop together, after the validation.
            progress=None if run.ranks.size > 1 else lambda what, done, total: keeper.obey(),
            ranks=run.ranks,
        ),
    )
    metrics["val.clean"] = result.accuracy()
    score = result.accuracy()
    if plan.attack:
        metrics["val.robust"] = result.accuracy("adv")
        score = {"clean": score, "robust": result.accuracy("adv")}.get(plan.select, result.w_robust("adv"))
    # Later epochs win ties: with few validation images ties are common, and training still helps.
    if plan.select != "last" and (run.best is None or score >= run.best["score"]):
        run.best = {"epoch": metrics["epoch"], "score": score}
        run.best_weights = to_cpu(net.state_dict())
        if run.folder:
            run.folder.save_weights(run.folder.best, run.best_weights)


def chosen_net(run: Run) -> nn.Module:
    """The net of the chosen epoch, on the run's device: what is evaluated and kept."""
    net = copy.deepcopy(run.eval_net()).eval()
    if isinstance(net, Net):
        as_kept(net)
    if run.best is not None:
        weights = run.best_weights
        if weights is None and run.folder:  # a state from elsewhere
            weights = run.folder.load_weights(run.folder.best)
        if weights is not None:
            net.load_state_dict(weights)
    return net.requires_grad_(False)

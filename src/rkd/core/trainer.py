"""fit(): one explicit training loop."""

import torch
from torch import Tensor

from .random import forked, key
from .run import RestartEpoch, Run, RunningMeans
from .types import Batch


def fit(run: Run) -> None:
    """Train until `run.epochs` epochs are over. `run.state.history` has one record an epoch then.

    `run.monitor` raises TrainingFailed for a step that is not finite, `run.checkpoints` Stopped when somebody asks for
    that. A run that ends in any other way goes on at its last checkpoint.
    """
    run.hooks.hook.rkd_run_start(run=run)
    run.state.start_clock()
    while run.state.epoch < run.epochs:
        try:
            run.monitor.start_epoch(run)
            for batch in run.loader.batches(run.state.epoch, run.state.batch):
                advance(run, batch)
                run.checkpoints.after_step(run)
            run.monitor.end_epoch(run)
        except RestartEpoch:
            continue
        end_epoch(run)


def end_epoch(run: Run) -> None:
    """Validation and the record of an epoch whose steps are over."""
    state = run.state
    metrics = {**run.epoch_metrics(), **(run.validate(run) if run.validate else {})}
    # The epoch number counts finished epochs from here on; its record is named by its own number.
    state.epoch, state.batch, state.skipped = state.epoch + 1, 0, 0
    state.means, state.epoch_start = RunningMeans(), None
    metrics["seconds"] = round(state.tick(), 3)
    state.history.append(metrics)
    run.hooks.hook.rkd_epoch_end(run=run, metrics=metrics)
    run.checkpoints.after_epoch(run)


def advance(run: Run, batch: Batch) -> None:
    """All that an epoch does with its next batch. Raises TrainingFailed, RestartEpoch."""
    run.monitor.before(run)
    loss = train_step(run, batch)
    if run.monitor.after(run, batch):
        run.state.means.add({"loss": loss, **{f"loss.{name}": term.mean() for name, term in run.terms.items()}})
        run.hooks.hook.rkd_after_update(run=run)
    run.state.batch += 1


def train_step(run: Run, batch: Batch) -> Tensor:
    """Gradients of a batch, or of this process's part of it, then the optimiser. Returns the whole batch's loss, a
    scalar, detached."""
    state, rate = run.state, run.lr * run.lr_scale
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)  # companions' groups have one
    # Dropout and its like draw from the global generator: here it follows from (seed, epoch, batch) too.
    # Each process has other samples, and so other numbers.
    process = (run.ranks.rank,) if run.ranks.rank else ()
    with forked(key(run.seed, "net", state.epoch, state.batch, *process), run.device):
        step = run.step(batch)
        run.optimizer.zero_grad(set_to_none=True)
        run.loss_value = torch.zeros(())
        if not run.hooks.hook.rkd_backward(step=step):
            run.loss_value = run.backward(run, step)
        run.hooks.hook.rkd_gradient(run=run, step=step)
        run.backward.update(run)
    return run.loss_value

"""The hooks of a run. One name, one sentence each.

They are implemented by extensions: configured instances, registered for one run. (Hooks that register components are in
`rkd.registry.hooks`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from .errors import RkdError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .run import Run
    from .step import Step

hookspec = pluggy.HookspecMarker("rkd")
hookimpl = pluggy.HookimplMarker("rkd")


class RunHooks:
    """What an extension may listen to.

    One with a state has `state_dict()` and `load_state_dict(state)`, as schedulers have. The latter is called before
    `rkd_run_start` where a run goes on, and amid the training where `--on-nan rollback` goes back.
    """

    @hookspec
    def rkd_run_start(self, run: Run) -> None:
        """Training is about to begin."""

    @hookspec
    def rkd_attack_query(self, step: Step, view: str, rows: Tensor | None, query: int, logits: Tensor) -> None:
        """An attack has run the student on the samples at `rows (b,)` of the step, its query number `query` from 0 on:
        `logits (b, K)`; `step.y[rows]` are their labels. None: on another number of images than it has samples left. Of
        several processes each hears of its own part of the batch; of a batch too small to be divided, the first."""

    @hookspec
    def rkd_attack_end(self, step: Step, view: str, images: Tensor) -> None:
        """An attack has found the images `(B, C, H, W)` of a view."""

    @hookspec(firstresult=True)
    def rkd_backward(self, step: Step) -> bool | None:
        """Compute the gradients of the whole batch, set `run.loss_value`, and return True. `run.backward(run, step)`
        computes them in micro-batches and over processes, as the run is set up. One extension of a run may do so."""

    @hookspec
    def rkd_gradient(self, run: Run, step: Step) -> None:
        """The gradients are computed, whoever did, and the optimiser comes next: change each parameter's `.grad` in
        place. In float16 they are still multiplied by the scale of the run's scaler."""

    @hookspec
    def rkd_after_update(self, run: Run) -> None:
        """The optimiser has moved the weights. `run.state.batch` is the number of the batch until the next step."""

    @hookspec(firstresult=True)
    def rkd_stop(self, run: Run) -> bool | None:
        """Whether the run shall save its state and stop: asked after every step and batch of a validation."""

    @hookspec
    def rkd_notice(self, run: Run, text: str) -> None:
        """Something happened in the training that its user should know: a skipped batch, a rollback."""

    @hookspec
    def rkd_epoch_end(self, run: Run, metrics: dict[str, Any]) -> None:
        """An epoch is over; `metrics` is its line in metrics.jsonl."""

    @hookspec(firstresult=True)
    def rkd_eval_net(self, run: Run) -> nn.Module | None:
        """The net to evaluate and keep instead of the student's own."""

    @hookspec
    def rkd_run_end(self, run: Run, results: dict[str, Any]) -> None:
        """Training and evaluation are over, and the run's folder is whole. `results` are what `rkd run --json` prints,
        and under `report` the path of the page, or None where none was asked for or could be written."""

    @hookspec
    def rkd_run_stopped(self, run: Run, error: BaseException) -> None:
        """The run ends in another way: stopped by its user, failed."""


def run_hooks(extensions: Mapping[str, Any] | None = None) -> pluggy.PluginManager:
    """A manager of run-time hooks with these configured extensions, and schedulers that listen too. Raises RkdError for
    a hook that does not exist, or where two do what one alone can."""
    manager = pluggy.PluginManager("rkd")
    manager.add_hookspecs(RunHooks)
    for name, extension in (extensions or {}).items():
        try:
            manager.register(extension, name=name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise RkdError(f"extension {name}: {error}") from None
    for hook, does in (
        (manager.hook.rkd_backward, "compute the gradients (rkd_gradient changes those that are there)"),
        (manager.hook.rkd_eval_net, "give the net to evaluate and keep"),
    ):
        if len(owners := [implementation.plugin_name for implementation in hook.get_hookimpls()]) > 1:
            raise RkdError(f"extensions {' and '.join(owners)} both {does}, which one of a run can: take one out")
    return manager

"""The hooks of rkd. One name, one sentence each.

Registration hooks are implemented at module level in a plugin file, which an entry point of the group `rkd` names.
Run-time hooks are implemented by extensions: configured instances, registered for one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    from torch import Tensor, nn

    from .step import Step
    from .trainer import Run

hookspec = pluggy.HookspecMarker("rkd")
hookimpl = pluggy.HookimplMarker("rkd")

KINDS = {
    "model": "rkd_models",
    "teacher": "rkd_teachers",
    "student": "rkd_students",
    "attack": "rkd_attacks",
    "objective": "rkd_objectives",
    "loss": "rkd_losses",
    "scheduler": "rkd_schedulers",
    "dataset": "rkd_datasets",
    "augment": "rkd_augments",
    "corruption": "rkd_corruptions",
    "extension": "rkd_extensions",
}
"""Kind of component -> the hook that provides it."""


class RegistrationHooks:
    """Each returns `{name: component}`."""

    @hookspec
    def rkd_models(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Architectures by name."""

    @hookspec
    def rkd_teachers(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Places where teachers come from."""

    @hookspec
    def rkd_students(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Conversions of a student."""

    @hookspec
    def rkd_attacks(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Searches for adversarial images."""

    @hookspec
    def rkd_objectives(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """What an attack maximises."""

    @hookspec
    def rkd_losses(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Losses, each with the defaults that make it a method."""

    @hookspec
    def rkd_schedulers(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Adaptive weights, temperatures and class weights."""

    @hookspec
    def rkd_datasets(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Sources of data."""

    @hookspec
    def rkd_augments(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Augmentations of whole batches."""

    @hookspec
    def rkd_corruptions(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Common corruptions of images at five severities."""

    @hookspec
    def rkd_extensions(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Extensions that hook into a run."""

    @hookspec
    def rkd_commands(self, cli: click.Group) -> None:
        """Add commands to the command line."""


class RunHooks:
    """What an extension may listen to.

    One with a state has `state_dict()` and `load_state_dict(state)`, as schedulers have. The latter is called before
    `rkd_run_start` where a run goes on, and amid the training where `--on-nan rollback` goes back.
    """

    @hookspec
    def rkd_run_start(self, run: Run) -> None:
        """Training is about to begin."""

    @hookspec
    def rkd_attack_query(self, step: Step, view: str, logits: Tensor) -> None:
        """An attack has run the student once on its current images."""

    @hookspec(firstresult=True)
    def rkd_backward(self, step: Step) -> bool | None:
        """Compute the gradients of this step (of several processes, this one's part of them), and return True."""

    @hookspec
    def rkd_after_update(self, run: Run) -> None:
        """The optimiser has moved the weights."""

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
        """Training and evaluation are over."""

"""The hooks that register components, and the kinds of components. One name, one sentence each.

They are implemented at module level in a plugin file, which an entry point of the group `rkd` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rkd.core.hooks import hookspec

if TYPE_CHECKING:
    from torch import nn

    from rkd.core.interfaces import Attack

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
    "exporter": "rkd_exporters",
    "tracker": "rkd_trackers",
    "zoo": "rkd_zoo",
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
    def rkd_exporters(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Formats that a student can be exported to."""

    @hookspec
    def rkd_trackers(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Where a run's numbers are shown besides its folder."""

    @hookspec
    def rkd_zoo(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Trained teachers that can be had: `rkd.plugin.read_zoo(FILE)`, or `{name: ZooTeacher}`."""

    @hookspec
    def rkd_commands(self, cli: Any) -> None:
        """Add commands to the command line, a `click.Group`."""


@dataclass(frozen=True, slots=True)
class Family:
    """Many components under one pattern of names, such as `wrnDEPTH-WIDTH`.

    `pattern` is a regular expression for the whole name; its named groups become options of `component`
    (a group that did not take part is left to the option's default).
    """

    pattern: str
    component: type
    examples: tuple[str, ...]


@runtime_checkable
class HasParts(Protocol):
    """An attack whose options name nets or other attacks."""

    def assemble(self, parts: Parts) -> None:
        """Take the parts: called once, when the options are checked, before anything runs. Raises RkdError."""


@runtime_checkable
class Parts(Protocol):
    """Nets and attacks that an attack's options only name: what `HasParts.assemble` is given.

    @dataclass
    class OnAnother:
        source: str
        mode: ClassVar = "eval"
        def assemble(self, parts):
            self.net = parts.net(self.source)
            self.search = parts.attack("pgd")
        def __call__(self, x, target):
            with target.on(self.net.to(x.device)) as other:
                return self.search(x, other)
    """

    def net(self, reference: str, normalize: str = "auto", options: Mapping[str, Any] | None = None) -> nn.Module:
        """The frozen net of a teacher reference: a run's folder, MODEL@WEIGHTS, or what an installed source of
        teachers understands. On the CPU; it takes images in [0, 1] of the data's shape and gives one logit a class.

        `normalize`, for weights files that do not say it: `data`, `none`, or `auto` for whichever is right on more
        training images; `options`: those of MODEL. Raises RkdError.
        """

    def attack(self, name: str, options: Mapping[str, Any] | None = None) -> Attack:
        """An attack by its name, with checked options, itself assembled. Raises RkdError."""

"""What a plugin implements. Each interface is small; none has to be inherited from.

A *component* is what a registration hook returns: a dataclass, whose fields are its options, or a plain function
without options. The registry makes an instance from validated options; the core only ever sees instances.
Numbers among the options may be annotated `Schedule`, and the user may then write `ramp(0, 0.3, until=0.4)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .types import Batch, Mode, QueryKind, View

if TYPE_CHECKING:  # the registry reads these without torch
    from torch import Tensor, nn

    from .attack import Patches, Target
    from .step import Step


@runtime_checkable
class Probe(Protocol):
    """The net under attack. `rkd.plugin.PlainProbe(f)` makes one of any function from images to logits.

    A query is one image that goes through the net: by a call, by `reference`, or in `patches`. Whoever hands out a
    probe counts them, once each: a step tells its hooks of calls, an evaluation counts images and gradients.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to logits `(B, K)`, differentiable in x."""

    def reference(self, x: Tensor) -> Tensor:
        """The same of the net itself, in float32, where calls may be answered by a faster copy."""

    def low_precision(self, kind: QueryKind) -> Probe:
        """The probe with queries of this kind in reduced precision, if the user allows that and it is faster; else the
        probe itself."""

    def patches(self, x: Tensor) -> Patches:
        """The images `x (B, C, H, W)`, for an attack that changes one patch of them after another."""


@runtime_checkable
class Teacher(Protocol):
    """A frozen net that teaches. `rkd.nets.net.NetTeacher` makes one of any `nn.Module`."""

    role: str

    def logits(self, x: Tensor) -> Tensor:
        """`(B, K)` for images `(B, C, H, W)` in [0, 1]: eval mode, weights frozen, differentiable in x."""


@runtime_checkable
class CachingTeacher(Teacher, Protocol):
    """A teacher that may know its logits on a batch's clean images already."""

    def clean_logits(self, batch: Batch) -> Tensor:
        """`(B, K)` on the clean images of `batch`, without gradient."""


@runtime_checkable
class Student(Protocol):
    """The net that is trained. `rkd.nets.student.NetStudent` makes one of any `nn.Module`."""

    net: nn.Module
    """Its weights are trained; takes images in [0, 1]."""
    routed: Sequence[View]
    """Views that run through auxiliary norms, which are not deployed."""

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> Mapping[View, Tensor]:
        """`(B, K)` per view. Views run in the order of the mapping: batch norm's running statistics see it."""

    def attacked(self, view: View, mode: Mode) -> AbstractContextManager[Probe]:
        """A context in which the net runs in `mode` with frozen weights; it gives the net as `view` sees it."""

    def deployed(self) -> nn.Module:
        """The net to evaluate and to keep."""

    def stand_in(self, net: nn.Module) -> Student:
        """Another net in this one's place, while an attack runs on it."""


@runtime_checkable
class Attack(Protocol):
    """A search for x_adv near x. It reads no labels of its own and knows no loss: it raises `target.score`.

    @dataclass
    class OneStep:
        mode: Mode = "eval"
        traits: ClassVar = AttackTraits(objective="margin")
        def __call__(self, x, target):
            score, gradient = target.gradient(x)
            return (x + target.threat.eps * gradient.sign()).clamp(0, 1)

    `traits` may be left out, and so may the methods of `rkd.plugin.HasNotes` and `rkd.plugin.HasParts`.
    """

    mode: Mode
    """How the student runs while attacked. The core applies it and restores every module's own flag."""

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1] inside the ball around `x`."""


Objective = Callable[["Step", Probe, "Tensor"], "Tensor"]
"""What an attack maximises: `(step, probe, x) -> (B,)`.

    def ce(step, probe, x):
        return ops.cross_entropy(probe(x), step.y)
"""


@runtime_checkable
class Loss(Protocol):
    """Named per-sample terms to minimise. It never attacks, toggles modes or touches a net: it asks the step.

    @dataclass
    class RobustOnly:
        roles = ()
        defaults = {"attack": "pgd", "objective": "ce"}
        def __call__(self, step):
            return {"adv": ops.cross_entropy(step.student("adv"), step.y)}

    `roles`, `defaults`, `weights` and `prepare` may be left out: `rkd.core.traits.LossTraits` says what they mean.
    """

    def __call__(self, step: Step) -> Mapping[str, Tensor]:
        """Each term `(B,)`."""


@runtime_checkable
class Stateful(Protocol):
    """A part with a state of its own: schedulers, and extensions that have one."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint must hold: numbers, strings, tensors, lists and dicts of them."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""


@runtime_checkable
class Scheduler(Stateful, Protocol):
    """An adaptive value, computed from what training shows. Several may run; two may not set the same name.

    @dataclass
    class WarmTemperature:
        rate: float = 0.1
        def update(self, step, terms):
            return {"T.robust": 1.0 + self.rate * step.progress}
        def state_dict(self): return {}
        def load_state_dict(self, state): pass
    """

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> Mapping[str, float | Tensor]:
        """New values by name. `weight.TERM`, `class_weights` and `class_weights.TERM` (a tensor `(K,)`) act in
        this very step; anything else is a knob that `step.knob(NAME)` returns from the next step on.
        `terms` are the loss's, `(B,)` each and attached to the graph: detach what you keep."""

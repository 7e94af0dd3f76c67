"""What a plugin implements. Each interface is small; none has to be inherited from.

A *component* is what a registration hook returns: a dataclass, whose fields are its options, or a plain function
without options. The registry makes an instance from validated options; the core only ever sees instances.
Numbers among the options may be annotated `Schedule`, and the user may then write `ramp(0, 0.3, until=0.4)`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .types import Batch, Mode, Norm, QueryKind, Schedule, ThreatModel, View

if TYPE_CHECKING:  # the registry reads these without torch
    from torch import Tensor, nn

    from .attack import Patches
    from .random import Noise
    from .step import Step


@runtime_checkable
class Probe(Protocol):
    """The net under attack. `rkd.plugin.PlainProbe(f)` makes one of any function from images to logits.

    A query is one image that goes through the net: by a call, by `reference`, or in `patches`. Whoever hands out a
    probe counts them, once each: a step tells its hooks of calls, an evaluation counts images and gradients. How many
    images a net takes at once is no business of the probe's users.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to logits `(B, K)`, differentiable in x."""
        ...

    def reference(self, x: Tensor) -> Tensor:
        """The same of the net itself, in float32, where calls may be answered by a faster copy."""
        ...

    def low_precision(self, kind: QueryKind) -> Probe:
        """The probe with queries of this kind in reduced precision, if the user allows that and it is faster; else the
        probe itself."""
        ...

    def patches(self, x: Tensor) -> Patches:
        """The images `x (B, C, H, W)`, for an attack that changes one patch of them after another."""
        ...


@runtime_checkable
class Accelerator(Protocol):
    """What makes nets run faster while they are attacked."""

    @property
    def name(self) -> str:
        """What it is called among options: an evaluation goes on with the one it began with."""
        ...

    def probe(
        self, net: nn.Module, view: View | None, plain: Callable[[Tensor], Tensor]
    ) -> AbstractContextManager[Probe]:
        """A context that gives `net` as a probe, for as long as its weights do not move.

        `plain`: the net as it runs without this, in eval mode, its routed batch norms as `view` sees them.
        """
        ...

    def choices(self) -> list[str]:
        """How nets have run so far, in words; `plain` for as they are."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """A frozen net that teaches. `rkd.nets.net.NetTeacher` makes one of any `nn.Module`.

    class Constant:                     # knows nothing, and says so
        role = "clean"
        def logits(self, x):
            return torch.zeros(len(x), 10)
    """

    role: str

    def logits(self, x: Tensor) -> Tensor:
        """`(B, K)` for images `(B, C, H, W)` in [0, 1]: eval mode, weights frozen, differentiable in x."""
        ...


@runtime_checkable
class CachingTeacher(Teacher, Protocol):
    """A teacher that may know its logits on a batch's clean images already."""

    def clean_logits(self, batch: Batch) -> Tensor:
        """`(B, K)` on the clean images of `batch`, without gradient."""
        ...


@runtime_checkable
class Student(Protocol):
    """The net that is trained. `rkd.nets.student.NetStudent` makes one of any `nn.Module`."""

    net: nn.Module
    """Its weights are trained; takes images in [0, 1]."""
    routed: Sequence[View]
    """Views that run through auxiliary norms, which are not deployed."""

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> Mapping[View, Tensor]:
        """`(B, K)` per view. Views run in the order of the mapping: batch norm's running statistics see it."""
        ...

    def attacked(self, view: View, mode: Mode) -> AbstractContextManager[Probe]:
        """A context in which the net runs in `mode` with frozen weights; it gives the net as `view` sees it."""
        ...

    def deployed(self) -> nn.Module:
        """The net to evaluate and to keep."""
        ...

    def stand_in(self, net: nn.Module) -> Student:
        """Another net in this one's place, while an attack runs on it."""
        ...


@runtime_checkable
class Target(Protocol):
    """What an attack attacks: a score to raise, by samples. Made by the core for each search.

    `y` labels `(B,)` or probabilities `(B, K)`; `threat` the ball; `progress` of the training in [0, 1]
    (1 in an evaluation); `noise` the only source of random numbers.
    """

    y: Tensor
    threat: ThreatModel
    progress: float
    noise: Noise

    def score(self, x: Tensor) -> Tensor:
        """`(B,)`, to be maximised; differentiable in x."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """`(B, K)` of the attacked net; differentiable in x."""
        ...

    def reference(self, x: Tensor) -> Tensor:
        """The same of the net itself, in float32. An attack with the trait `confirms` may get its `logits` from a
        faster, less exact copy of the net, and counts nothing before it has asked here."""
        ...

    def low_precision(self, kind: QueryKind) -> Target:
        """The same target with queries of this kind in reduced precision, if the user allows that and it is faster;
        else this one. For an attack with the trait `confirms`."""
        ...

    def patches(self, x: Tensor) -> Patches:
        """The images `x (B, C, H, W)`, for an attack that changes one patch of them after another."""
        ...

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`score(x)`, detached, and its gradient by x, from one forward and one backward."""
        ...

    def select(self, keep: Tensor) -> Target:
        """The target for the samples at `keep` (a mask or positions) alone."""
        ...

    def on(self, net: nn.Module, mode: Mode = "eval") -> AbstractContextManager[Target]:
        """A context that gives the same target with another net under attack: labels, ball, objective and random
        numbers stay. The other net is left as it was; its running statistics move in no mode. An evaluation counts what
        is asked of it, too, apart from the questions to the net under attack."""
        ...


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

    `traits` may be left out, and so may a method `notes(classes)`, see `HasNotes`, and a method `assemble(parts)`, see
    `rkd.plugin.HasParts`.
    """

    mode: Mode
    """How the student runs while attacked. The core applies it and restores every module's own flag."""

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1] inside the ball around `x`."""
        ...


@dataclass(frozen=True, slots=True)
class AttackTraits:
    """What others must know of an attack. It declares them as a class attribute, or sets them in an instance:

        traits: ClassVar = AttackTraits(black_box=True, own_objective=True)

    An attack's attributes `mode`, `eps`, `norm` and `bounded`, usually options, need no mention: `traits_of` reads
    them from the attack.
    """

    objective: str = "ce"
    """The objective that is maximised where nobody chooses another one."""
    own_objective: bool = False
    """It has a loss of its own and never asks for `target.score`: whoever chooses an objective is told that it makes
    no difference."""
    black_box: bool = False
    """It takes no gradient of the attacked net, and so must not beat attacks that do."""
    confirms: bool = False
    """It asks `target.reference` before it counts an image as fooling the net: its other questions may go to a faster,
    less exact copy."""
    seeks_nearest: bool = False
    """It looks for the nearest image that fools the net, whatever the radius: accuracy against eps is drawn of other
    attacks, if there are any."""
    any_radius: bool = False
    """Its option `bounded` only withholds what lies outside the ball: one unbounded search serves all radii."""
    measure: Norm | None = None
    """The norm in which it looks for the nearest image; None: the ball's."""
    bounded: bool = True
    """It keeps to the ball."""
    mode: Mode = "eval"
    """How the attacked net runs."""
    eps: Schedule | None = None
    """A radius of its own; None: the target's."""
    norm: Norm | None = None
    """A norm of its own; None: the target's."""


_READ_FROM_OPTIONS = ("mode", "eps", "norm", "bounded")
_DEPRECATED = ("objective", "own_objective", "black_box", "confirms", "seeks_nearest", "any_radius", "measure")
"""Class attributes that stood for the traits in 0.1."""


def traits_of(attack: object) -> AttackTraits:
    """The traits of an attack, or of its class: those it declares, and its attributes `mode`, `eps`, `norm` and
    `bounded`. Nobody else reads optional attributes of attacks."""
    attributes = {name: getattr(attack, name, None) for name in ("traits", *_READ_FROM_OPTIONS, *_DEPRECATED)}
    values = {
        name: value
        for name, value in attributes.items()
        if value is not None and not inspect.isdatadescriptor(value)  # a class's property has no value yet
    }
    declared = values.pop("traits", None)
    if not isinstance(declared, AttackTraits):
        # Whoever says nothing, and has the option to keep to no ball, needs none to find its images.
        declared = AttackTraits(seeks_nearest="bounded" in getattr(attack, "__dataclass_fields__", {}))
    for name in values.keys() & set(_DEPRECATED):
        warnings.warn(
            f"{name} = {values[name]!r} on the attack {attack!r} is deprecated, and 0.3 will not read it: declare "
            f"traits = AttackTraits({name}={values[name]!r}), with `from rkd.plugin import AttackTraits`",
            DeprecationWarning,
            stacklevel=2,
        )
    return replace(declared, **values)


@runtime_checkable
class HasNotes(Protocol):
    """An attack that has something to say about its settings; evaluations show it."""

    def notes(self, classes: int) -> Sequence[str]:
        """What a reader of the result should know, a sentence each, on data of so many classes."""
        ...


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
        weights = {}
        def __call__(self, step):
            return {"adv": ops.cross_entropy(step.student("adv"), step.y)}
    """

    roles: Sequence[str]
    """Teacher roles it needs, in the order in which `--teacher` fills them."""
    defaults: Mapping[str, Any]
    """The rest of the method: `attack`, `objective`, `scheduler` by name, and single options such as
    `attack.mode`, which hold as long as the attack they belong to is the default one."""
    weights: Mapping[str, Schedule]
    """Weight of each term; a term that is not named weighs 1."""

    def __call__(self, step: Step) -> Mapping[str, Tensor]:
        """Each term `(B,)`."""
        ...


@runtime_checkable
class Scheduler(Protocol):
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
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint must hold: numbers, strings, tensors, lists and dicts of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

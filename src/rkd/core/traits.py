"""What components may declare of themselves, and need not. No other file reads attributes that may be missing."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .types import Companion, DerivedView, Mode, Norm, Schedule, View

if TYPE_CHECKING:  # the registry reads these without torch
    from _typeshed import DataclassInstance
    from torch import nn

Traits = TypeVar("Traits", bound="DataclassInstance")

_MISSING = object()


@dataclass(frozen=True, slots=True)
class AttackTraits:
    """What others must know of an attack. It declares them as a class attribute, or sets them in an instance:

        traits: ClassVar = AttackTraits(black_box=True, own_objective=True)

    An attack's attributes `mode`, `eps`, `norm`, `bounded` and `steps`, usually options, need no mention: `traits_of`
    reads them from the attack.
    """

    objective: str = "ce"
    """The objective that is maximised where nobody chooses another one."""
    own_objective: bool = False
    """It never asks for `target.score`: whoever chooses an objective is told that it makes no difference."""
    black_box: bool = False
    """It takes no gradient of the attacked net, and so must not beat attacks that do."""
    confirms: bool = False
    """It asks `target.reference` before it counts an image as fooling the net: its other questions may go to a faster,
    less exact copy."""
    seeks_nearest: bool = False
    """It looks for the nearest image that fools the net, whatever the radius: curves over eps prefer other attacks."""
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
    steps: int | None = None
    """Gradients in a row, if it is a search by gradients: its cost is linear in them."""


@dataclass(frozen=True, slots=True)
class LossTraits:
    """What a loss may declare beside its terms, each as an attribute of its own."""

    roles: Sequence[str] | None = None
    """Teacher roles it needs, in the order in which `--teacher` fills them; None: it takes the teachers it is given."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The rest of the method: `attack`, `objective`, `scheduler`, `extension` by name (of the last two also several),
    and single options such as `attack.mode` and `objective.role`, which hold as long as the attack or objective they
    belong to is the default one."""
    weights: Mapping[str, Schedule] = field(default_factory=dict)
    """Weight of each term; a term that is not named weighs 1."""
    prepare: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By role, the recipe that prepares a missing teacher; its `student` may be `same`: the student's architecture."""
    auxiliary: bool = False
    """It is a term for other losses (`--loss rslad+igdm`), which takes whatever attack these have."""
    derived_views: Mapping[View, DerivedView] = field(default_factory=dict)
    """Views that follow from others, by name."""
    companions: Mapping[str, Companion] = field(default_factory=dict)
    """Nets beside the student, by name."""
    targets: Callable[[Any], Any] | None = None
    """A method that makes the labels `(B, K)` which it teaches in place of the data's, probabilities, of a step, each
    from that sample alone: it finds them as `step.targets`, and so does the objective `ce-targets`."""


def traits_of(attack: object) -> AttackTraits:
    """The traits of an attack, or of its class: those it declares, and its attributes `mode`, `eps`, `norm`, `bounded`
    and `steps`. The other ones as class attributes are those of 0.1: read with a warning."""
    traits = _attributes(attack, ["traits"]).get("traits")
    if not isinstance(traits, AttackTraits):
        # Whoever says nothing, and has the option to keep to no ball, needs none to find its images.
        options = {option.name for option in fields(attack)} if is_dataclass(attack) else set()
        traits = AttackTraits(seeks_nearest="bounded" in options)
    own = _attributes(attack, [item.name for item in fields(AttackTraits)])
    values = {name: value for name, value in own.items() if value is not None}
    for name in values.keys() - {"mode", "eps", "norm", "bounded", "steps"}:
        warnings.warn(
            f"{name} = {values[name]!r} on the attack {attack!r} is deprecated, and 0.3 will not read it: declare "
            f"traits = AttackTraits({name}={values[name]!r}), with `from rkd.plugin import AttackTraits`",
            DeprecationWarning,
            stacklevel=2,
        )
    return replace(traits, **values)


def declared(component: object, kind: type[Traits]) -> Traits:
    """`kind`, a dataclass of traits such as `LossTraits`, from the attributes of a component or its class."""
    return kind(**_attributes(component, [item.name for item in fields(kind)]))


def training_flag(module: nn.Module) -> bool | None:
    """A module's flag `training`; None for a frozen TorchScript module, which has no modes any more."""
    return getattr(module, "training", None)


def name_of(component: object) -> str:
    """A function's or class's own name, else that of the component's class."""
    return str(getattr(component, "__name__", type(component).__name__))


def _attributes(component: object, names: Iterable[str]) -> dict[str, Any]:
    """Those of the attributes that the component has."""
    values = {name: getattr(component, name, _MISSING) for name in names}
    # A class's property has no value yet.
    return {n: v for n, v in values.items() if v is not _MISSING and not inspect.isdatadescriptor(v)}

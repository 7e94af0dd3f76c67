"""Attacks as others write them, `f(model, images, labels) -> images`, as attacks of rkd."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rkd.core.attack import Target
from rkd.core.errors import Refused, RkdError
from rkd.core.interfaces import Attack
from rkd.core.random import forked, key
from rkd.core.step import AttackPlan
from rkd.core.traits import AttackTraits, name_of, traits_of
from rkd.core.types import Mode
from rkd.registry.catalog import Catalog

FORMS = (
    "an attack is a name, a function f(model, images, labels) -> images, or an object of rkd with `mode` and "
    "__call__(x, target)"
)


class _Attacked(nn.Module):
    """The attacked net, as such functions call it: images `(B, C, H, W)` to logits `(B, K)`. Its weights are not to be
    had, and its mode is the evaluation's or training's affair."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    def forward(self, x: Tensor) -> Tensor:
        return self._target.logits(x)


@dataclass
class FunctionAttack:
    """An attack by a plain function f(model, images, labels) -> images.

    The function gets the net as a module, images `(B, C, H, W)` float32 in [0, 1] and labels `(B,)`, on the net's
    device, and returns images of the same form. It knows the ball by itself: what leaves the threat model's is refused
    in a training, and shown apart in an evaluation. Random numbers of torch's global generator are the same each time.

    function: what it is called.
    code: a hash of its code: a run goes on, and an evaluation, with the same one alone.
    """

    function: str
    code: str
    mode: Mode = "eval"
    call: Callable[[nn.Module, Tensor, Tensor], Tensor] = field(default=None, init=False, repr=False, compare=False)  # type: ignore[assignment]
    traits: ClassVar = AttackTraits(own_objective=True)

    @classmethod
    def of(cls, call: Callable[..., Any]) -> "FunctionAttack":
        attack = cls(name_of(call), _digest(call))
        attack.call = call
        return attack

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        if target.y.ndim != 1:
            raise Refused(
                f"the attack {self.function} takes labels, and an augmentation made soft ones (mixup, cutmix)"
            )
        with forked(key(target.noise.key, "function"), x.device), torch.enable_grad():
            found = self.call(_Attacked(target), x.detach().clone(), target.y.clone())
        if not isinstance(found, Tensor) or found.shape != x.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RkdError(f"the attack {self.function} must return images {tuple(x.shape)}, it returned {got}")
        return found.detach().to(x)


def as_attack(given: Any) -> Attack:
    """An attack of rkd, of such an object or a plain function. Raises RkdError for what is neither."""
    if isinstance(given, type):
        raise RkdError(f"{FORMS}; got the class {given.__name__}: give an instance, {given.__name__}(...)")
    if isinstance(given, Attack) and not inspect.isfunction(given):
        return given
    if not callable(given):
        raise RkdError(f"{FORMS}; got {type(given).__name__}")
    if (count := _arguments(given)) not in (3, None):
        hint = "; of torchattacks' PGD: lambda model, x, y: torchattacks.PGD(model)(x, y)" if count == 2 else ""
        raise RkdError(f"{FORMS}; {name_of(given)} takes {count} arguments{hint}")
    return FunctionAttack.of(given)


def as_plan(given: Any, catalog: Catalog, objective: Any = None) -> AttackPlan:
    """An attack with what it maximises: `objective`, or the attack's own. Raises RkdError."""
    if isinstance(given, AttackPlan):
        return given
    search = catalog.create("attack", given) if isinstance(given, str) else as_attack(given)
    goal = objective or traits_of(search).objective
    if not isinstance(goal, str) and not callable(goal):
        raise RkdError(f"an objective is a name or a function (step, probe, x) -> (B,); got {type(goal).__name__}")
    return AttackPlan(search, catalog.create("objective", goal) if isinstance(goal, str) else goal)


def _arguments(call: Callable[..., Any]) -> int | None:
    """How many positional arguments it needs; None where that cannot be told."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    could = [p for p in parameters if p.kind in positional]
    return 3 if len(needed) <= 3 <= len(could) else len(needed)


def _digest(call: Any) -> str:
    """Of the function's source, where there is one; a notebook's cells have it, too."""
    try:
        text = inspect.getsource(call if inspect.isroutine(call) else type(call))
    except (OSError, TypeError):
        text = repr(name_of(call))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

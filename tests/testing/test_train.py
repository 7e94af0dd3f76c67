"""The kit must be able to fail: for each promise a component that breaks it, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rkd import ops, testing
from rkd.core.attack import Target
from rkd.core.hooks import hookimpl
from rkd.testing import OneStep, tiny_run

from .conftest import says

# Losses


@dataclass
class Sound:
    """Cross-entropy, clean and attacked; `change` breaks it."""

    change: Callable[[dict[str, Tensor]], Any] = lambda terms: terms
    weights: Any = field(default_factory=dict)
    roles: Any = ()
    defaults: Any = field(default_factory=lambda: {"attack": "pgd"})

    def __call__(self, step) -> Any:
        clean, adv = step.students("clean", "adv")
        return self.change({"clean": ops.cross_entropy(clean, step.y), "adv": ops.cross_entropy(adv, step.y)})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, ""),
        ({"change": lambda t: {"clean": t["clean"].mean()}}, "one value per sample"),
        ({"change": lambda t: list(t.values())}, "by name"),
        ({"change": lambda t: {}}, "by name"),
        ({"change": lambda t: {1: t["clean"]}}, "must be text"),
        ({"change": lambda t: {"clean": t["clean"].detach()}}, "no gradient"),
        ({"change": lambda t: {"clean": t["clean"] / 0}}, "not finite"),
        ({"change": lambda t: {"clean": (t["clean"] * 0).sqrt()}}, "the gradient"),
        ({"change": lambda t: {"clean": t["clean"].exp()}}, "not finite"),
        ({"change": lambda t: {"clean": t["clean"] * t["clean"].mean()}}, "other samples"),
        ({"change": lambda t: {"clean": t["clean"] * torch.rand(1)}}, "random state"),
        ({"weights": {"cleen": 1.0}}, "names ['cleen']"),
        ({"weights": {"clean": "1"}}, "number or a schedule"),
        ({"weights": {"clean": float("nan")}}, "not finite"),
        ({"weights": None}, "weights must map"),
        ({"roles": "robust"}, "sequence of names"),
        ({"roles": ("robust", "robust")}, "twice"),
        ({"defaults": {}}, "its defaults name no attack"),
        ({"defaults": ["pgd"]}, "defaults must map"),
    ],
)
def test_losses(settings: dict, word: str) -> None:
    if word:
        says(lambda: testing.check_loss(Sound(**settings)), word)
    else:
        testing.check_loss(Sound())


def test_the_smallest_loss_and_attack_there_are() -> None:
    """What need not be said need not be there: roles, defaults, weights, mode."""

    class Loss:
        def __call__(self, step) -> dict[str, Tensor]:
            return {"ce": ops.cross_entropy(step.student("clean"), step.y)}

    class Attack:
        def __call__(self, x: Tensor, target: Target) -> Tensor:
            return OneStep()(x, target)

    testing.check_loss(Loss())
    testing.check_attack(Attack(), optimum=0)
    testing.check_trains(tiny_run(Loss()))


def test_a_loss_with_a_memory() -> None:
    class Counts(Sound):
        seen = 0

        def __call__(self, step) -> Any:
            self.seen += 1
            return {name: self.seen * term for name, term in super().__call__(step).items()}

    says(lambda: testing.check_loss(Counts()), "the second time")


def test_a_loss_that_changes_the_batch() -> None:
    class Changes(Sound):
        def __call__(self, step) -> Any:
            step.batch.x.mul_(0.5)
            return super().__call__(step)

    says(lambda: testing.check_loss(Changes()), "must not change the batch")


def test_a_loss_that_teaches_the_teacher() -> None:
    class Thaws(Sound):
        def __call__(self, step) -> Any:
            step._teachers["robust"].net.train()
            return super().__call__(step)

    says(lambda: testing.check_loss(Thaws(roles=("robust",))), "the flag training")


# Schedulers


@dataclass
class Steady:
    """Counts steps and says so; `update_with` breaks it."""

    update_with: Callable[..., Any] = lambda self, step, terms: {"weight.adv": 1.0 + self.count}
    complete: bool = True
    count: int = 0

    def update(self, step, terms) -> Any:
        self.count += 1
        return self.update_with(self, step, terms)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count} if self.complete else {}

    def load_state_dict(self, state) -> None:
        self.count = state.get("count", 0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, ""),
        ({"complete": False}, "state_dict() lacks something"),
        ({"update_with": lambda self, step, terms: {"weight.other": 1.0}}, "the loss has the terms"),
        ({"update_with": lambda self, step, terms: {"weight.adv": float("nan")}}, "not finite"),
        ({"update_with": lambda self, step, terms: {"weight.adv": terms["adv"].mean()}}, "attached to the graph"),
        ({"update_with": lambda self, step, terms: [1.0]}, "by name"),
        ({"update_with": lambda self, step, terms: {1: 1.0}}, "must be text"),
        ({"update_with": lambda self, step, terms: {"T": float(torch.rand(1))}}, "random state"),
        ({"update_with": lambda self, step, terms: {"T": terms["adv"].data.zero_()}}, "must not change the loss"),
    ],
)
def test_schedulers(settings: dict, word: str) -> None:
    if word:
        says(lambda: testing.check_scheduler(Steady(**settings)), word)
    else:
        testing.check_scheduler(Steady())


@pytest.mark.parametrize(("kept", "word"), [(lambda t: t, "with its graph"), (lambda t: {1, 2}, "not set")])
def test_schedulers_that_keep_too_much(kept, word: str) -> None:
    class Keeps(Steady):
        def update(self, step, terms) -> Any:
            self.last = kept(terms["adv"])
            return {}

        def state_dict(self) -> dict[str, Any]:
            return {"last": [self.last]}

    says(lambda: testing.check_scheduler(Keeps()), word)


# Extensions


def test_extensions() -> None:
    class Fine:
        @hookimpl
        def rkd_after_update(self, run):
            self.steps = getattr(self, "steps", 0) + 1

    class Noisy:
        @hookimpl
        def rkd_after_update(self, run):
            torch.rand(1)

    class Unsteady:
        seen = 0

        @hookimpl
        def rkd_after_update(self, run):
            Unsteady.seen += 1
            run.student.net.arch.head.bias.data.add_(0.01 * Unsteady.seen)

    class Misspelt:
        @hookimpl
        def rkd_after_updates(self, run): ...

    class Forgetful:
        """Its strength grows with the steps, and a checkpoint does not know."""

        def __init__(self) -> None:
            self.steps = 0

        @hookimpl
        def rkd_after_update(self, run):
            self.steps += 1
            run.student.net.arch.head.bias.data.add_(0.01 * self.steps)

    class Mindful(Forgetful):
        def state_dict(self) -> dict[str, Any]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.steps = state["steps"]

    testing.check_extension(Fine())
    testing.check_extension(Mindful())
    says(lambda: testing.check_extension(Forgetful()), "state_dict() lacks something")
    says(lambda: testing.check_extension(Noisy()), "random state")
    says(lambda: testing.check_extension(Unsteady()), "the second time")
    says(lambda: testing.check_extension(Misspelt()), "rkd_after_updates")


# Models, conversions


# Data


def test_trains() -> None:
    testing.check_trains(tiny_run(Sound(), attack=OneStep()))
    says(lambda: testing.check_trains(tiny_run(Sound(), attack=OneStep(), lr=0.0)), "moved no weight")

"""check_attack and check_objective tell sound searches from unsound ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rkd import ops, testing
from rkd.core.attack import Target
from rkd.core.errors import Refused
from rkd.core.traits import AttackTraits
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.pgd import Pgd
from rkd.testing import OneStep

from .conftest import says


@dataclass
class Around(OneStep):
    """A sound attack, and something done to what it finds."""

    change: Callable[[Tensor, Tensor], Tensor] = lambda found, x: found

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        return self.change(super().__call__(x, target), x)


@dataclass
class Signed(OneStep):
    """One signed step of Linf; `step` breaks it."""

    step: Callable[[Tensor, Tensor], Tensor] = lambda gradient, x: gradient.sign()

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        super().__call__(x, target)  # refuses L2
        _, gradient = target.gradient(x)
        return (x + target.threat.eps * self.step(gradient, x)).clamp(0, 1)


class Round(Signed):
    """Takes every ball for a box."""

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        return (x + target.threat.eps * target.gradient(x)[1].sign()).clamp(0, 1)


class InPlace(Signed):
    def __call__(self, x: Tensor, target: Target) -> Tensor:
        return x.copy_(super().__call__(x, target))


class Remembers(Signed):
    calls = 0

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        Remembers.calls += 1
        return x + (super().__call__(x, target) - x) / Remembers.calls


class Hooked(Signed):
    """Leaves something behind in the net."""

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        net = next(
            c.cell_contents for c in target._probe._logits.__closure__ if isinstance(c.cell_contents, NetStudent)
        ).net
        net.register_forward_hook(lambda *_: None)
        return super().__call__(x, target)


@dataclass
class Greedy(OneStep):
    """Forgets that more restarts must not be weaker."""

    restarts: int = 1

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        found = super().__call__(x, target)
        return found if self.restarts == 1 else x


@pytest.mark.parametrize(
    ("attack", "word"),
    [
        (Around(change=lambda found, x: (x + 1.2 * (found - x)).clamp(0, 1)), "left the Linf ball"),
        (Around(change=lambda found, x: found + 0.02), "[0, 1]"),
        (Around(change=lambda found, x: found * torch.nan), "not numbers"),
        (Around(change=lambda found, x: x), "0% of the best possible gain"),
        (Around(change=lambda found, x: (2 * x - found).clamp(0, 1)), "of the best possible gain"),
        (Around(change=lambda found, x: found.requires_grad_()), ""),  # the core detaches it
        (Round(), "left the L2 ball"),
        (Signed(step=lambda g, x: g.sum(0, keepdim=True).sign()), "of the best possible gain"),
        (Signed(step=lambda g, x: g / g.abs()), "not numbers"),
        (Signed(step=lambda g, x: g.sign() * (torch.rand_like(x) < 2)), "global random state"),
        (Signed(step=lambda g, x: g / g.abs().max()), "depends on the other images"),
        (Remembers(), "the second time"),
        (InPlace(), "must not change the images"),
        (Hooked(), "the hooks of"),
        (dataclasses.replace(OneStep(), mode="evaluate"), "mode must be one of"),
        (Greedy(), "with more restarts"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:12],
)
def test_attacks(attack, word: str) -> None:
    if word:
        says(lambda: testing.check_attack(attack, optimum=0.9 if "gain" in word else 0), word)
    else:
        testing.check_attack(attack, optimum=0)


@pytest.mark.parametrize(
    ("traits", "word"),
    [
        ({"own_objective": True}, "declares own_objective, and asks"),
        ({"black_box": True}, "declares black_box, and takes gradients"),
        ({"any_radius": True}, "must declare seeks_nearest"),
        ({"measure": "L7"}, "OneStep.measure must be one of None, Linf, L2"),
    ],
)
def test_attacks_keep_to_what_they_declare(traits: dict[str, Any], word: str) -> None:
    attack = OneStep()
    attack.traits = AttackTraits(**traits)
    says(lambda: testing.check_attack(attack, optimum=0), word)


def test_attacks_that_never_ask_for_the_score_say_so() -> None:
    class Noise:
        traits = AttackTraits()

        def __call__(self, x: Tensor, target: Target) -> Tensor:
            if target.threat.norm != "Linf":
                raise Refused("noise in other norms is another one")
            return (x + target.noise.uniform(x.shape[1:], -target.threat.eps, target.threat.eps)).clamp(0, 1)

    says(lambda: testing.check_attack(Noise(), optimum=0), "declare own_objective=True")
    Noise.traits = AttackTraits(own_objective=True, black_box=True)
    testing.check_attack(Noise(), optimum=0)


def test_attacks_that_are_sound() -> None:
    testing.check_attack(OneStep(), optimum=0)
    testing.check_attack(Pgd(eps=4 / 255, restarts=2), eps=4 / 255)


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y).mean(), "one value per sample"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y).detach(), "differentiable"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y) + 0 * probe(x.flip(0))[:, 0] ** 2, ""),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y) + probe(x)[:, 0].sum(), "images of others"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y) * torch.rand(1), "random state"),
        (lambda step, probe, x: probe(x).exp().sum(1).log(), "not finite for logits around 1e4"),
        (lambda step, probe, x: -probe(x).softmax(1)[:, 0].log(), "not finite for logits around 1e4"),
        (lambda step, probe, x: 0 * ops.cross_entropy(probe(x), step.y), "no gradient"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), torch.arange(len(x)) % 4), "when samples leave"),
        (lambda step, probe, x: probe(x).sum(1) if step.y.ndim == 1 else probe(x).sum(1) / 0, "soft labels"),
    ],
)
def test_objectives(objective, word: str) -> None:
    if word:
        says(lambda: testing.check_objective(objective), word)
    else:
        testing.check_objective(objective)

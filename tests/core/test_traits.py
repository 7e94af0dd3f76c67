"""What components declare of themselves, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from rkd.core.traits import (
    AttackTraits,
    LossTraits,
    declared,
    name_of,
    training_flag,
    traits_of,
)
from rkd.data.augment import AugmentTraits
from rkd.nets.fitting import NetTraits


@dataclass
class Declares:
    eps: float | None = None
    norm: str | None = None
    bounded: bool = True
    mode: str = "eval"
    steps: int = 10

    traits: ClassVar = AttackTraits(objective="margin", black_box=True, measure="L2")

    def __call__(self, x, target):
        return x


class Silent:
    def __call__(self, x, target):
        return x


def test_declared_traits_and_those_that_are_options() -> None:
    traits = traits_of(Declares(eps=0.1, norm="L2", bounded=False, mode="train", steps=3))
    assert traits == AttackTraits(
        "margin", black_box=True, measure="L2", bounded=False, mode="train", eps=0.1, norm="L2", steps=3
    )
    assert traits_of(Declares) == AttackTraits("margin", black_box=True, measure="L2", steps=10)


def test_an_attack_that_declares_nothing() -> None:
    assert traits_of(Silent()) == traits_of(Silent) == AttackTraits()


def test_traits_of_an_instance() -> None:
    """What is known only later, as of an attack that runs another one."""
    attack = Silent()
    attack.traits = AttackTraits(own_objective=True)
    assert traits_of(attack).own_objective and not traits_of(Silent).own_objective


@pytest.mark.parametrize(
    ("name", "value"),
    [("objective", "margin"), ("own_objective", True), ("black_box", True), ("confirms", True), ("seeks_nearest", True),
     ("any_radius", True), ("measure", "L2")],
)  # fmt: skip
def test_class_attributes_of_0_1_are_read_with_a_warning(name: str, value: object) -> None:
    old = type("Old", (Silent,), {name: value})
    for attack in (old(), old):
        with pytest.warns(DeprecationWarning, match=rf"traits = AttackTraits\({name}={value!r}\)"):
            assert getattr(traits_of(attack), name) == value


def test_an_option_to_keep_to_no_ball_meant_a_search_for_the_nearest_image() -> None:
    @dataclass
    class Nearest(Silent):
        bounded: bool = True

    assert traits_of(Nearest()).seeks_nearest and not traits_of(Nearest()).any_radius


def test_properties_are_read_of_instances_alone() -> None:
    class Computed(Silent):
        @property
        def eps(self) -> float:
            return 0.25

    assert traits_of(Computed).eps is None and traits_of(Computed()).eps == 0.25


class Declaring:
    defaults: ClassVar = {"attack": "pgd"}

    @property
    def weights(self) -> dict[str, float]:
        return {"adv": 2.0}


def test_a_loss_that_declares_some_of_its_traits() -> None:
    assert declared(Declaring(), LossTraits) == LossTraits(None, {"attack": "pgd"}, {"adv": 2.0}, {})
    assert declared(Declaring, LossTraits).weights == {}, "a property of a class has no value yet"
    assert declared(None, LossTraits) == LossTraits()


def test_augmentations_and_nets() -> None:
    assert not declared(Declaring(), AugmentTraits).mixes
    assert declared(type("Mixing", (), {"mixes": True}), AugmentTraits).mixes
    net = torch.nn.Linear(1, 1)
    assert declared(net, NetTraits) == NetTraits((), {})
    net.ignored_keys = ("sub.",)
    assert declared(net, NetTraits).ignored_keys == ("sub.",)


def test_the_mode_of_a_module() -> None:
    net = torch.nn.Linear(1, 1)
    assert training_flag(net) and not training_flag(net.eval())
    frozen = torch.jit.freeze(torch.jit.trace(net, torch.zeros(1, 1)))
    assert training_flag(frozen) is None


def test_names() -> None:
    assert (name_of(test_names), name_of(Silent), name_of(Silent())) == ("test_names", "Silent", "Silent")

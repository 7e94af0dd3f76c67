"""What an attack declares, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from rkd.core.interfaces import Attack, AttackTraits, HasNotes, traits_of
from rkd.registry.hooks import HasParts


@dataclass
class Declares:
    eps: float | None = None
    norm: str | None = None
    bounded: bool = True
    mode: str = "eval"

    traits: ClassVar = AttackTraits(objective="margin", black_box=True, measure="L2")

    def __call__(self, x, target):
        return x


class Silent:
    def __call__(self, x, target):
        return x


def test_declared_traits_and_those_that_are_options() -> None:
    traits = traits_of(Declares(eps=0.1, norm="L2", bounded=False, mode="train"))
    assert traits == AttackTraits(
        "margin", black_box=True, measure="L2", bounded=False, mode="train", eps=0.1, norm="L2"
    )
    assert traits_of(Declares) == AttackTraits("margin", black_box=True, measure="L2")
    assert isinstance(Declares(), Attack)


def test_an_attack_that_declares_nothing() -> None:
    assert traits_of(Silent()) == traits_of(Silent) == AttackTraits()
    assert not isinstance(Silent(), (HasNotes, HasParts))


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

"""Kinds of components and the hooks that register them."""

from __future__ import annotations

import re

import pluggy
import pytest

from rkd.core.hooks import hookimpl
from rkd.registry.hooks import KINDS, Family, RegistrationHooks


def test_each_kind_has_its_hook() -> None:
    hooks = {name for name in vars(RegistrationHooks) if name.startswith("rkd_")}
    assert hooks - set(KINDS.values()) == {"rkd_commands"}
    assert set(KINDS.values()) <= hooks


def test_a_module_registers_by_returning_names() -> None:
    class Module:
        @hookimpl
        def rkd_losses(self) -> dict[str, type]:
            return {"mine": int}

    manager = pluggy.PluginManager("rkd")
    manager.add_hookspecs(RegistrationHooks)
    manager.register(Module())
    assert manager.hook.rkd_losses() == [{"mine": int}]


def test_a_family_is_a_pattern_of_names() -> None:
    family = Family(r"wrn(?P<depth>\d+)-(?P<width>\d+)", int, ("wrn28-10",))
    assert re.fullmatch(family.pattern, family.examples[0])
    with pytest.raises(AttributeError):
        family.pattern = ""  # type: ignore[misc]

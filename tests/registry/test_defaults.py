"""Settings that a method and a data set bring along."""

from __future__ import annotations

from typing import Any

import pytest

from rkd.registry.catalog import Catalog
from rkd.registry.defaults import data_defaults, default_objective, method_defaults, name_of, with_names


class Method:
    """A loss with defaults of every kind."""

    defaults = {
        "attack": "pgd", "attack.steps": 7, "objective": "kl-student", "scheduler": "anl", "validate.select": "clean",
    }  # fmt: skip


def brought(catalog: Catalog, **table: Any) -> dict[str, Any]:
    return method_defaults(Method, table, catalog)


def test_what_a_silent_user_gets(catalog: Catalog) -> None:
    assert brought(catalog) == {
        "attack": {"name": "pgd", "steps": 7}, "objective": {"name": "kl-student"}, "schedulers": {"anl": {}},
        "validate": {"select": "clean"},
    }  # fmt: skip


def test_another_attack_brings_its_own_goal_and_none_of_the_options(catalog: Catalog) -> None:
    assert brought(catalog, attack={"name": "cw"})["attack"] == {"name": "cw"}
    assert brought(catalog, attack={"name": "cw"})["objective"] == {"name": "margin"}
    assert brought(catalog, attack={"name": "fgsm"})["objective"] == {"name": "kl-student"}


def test_a_named_scheduler_takes_the_place_of_the_methods(catalog: Catalog) -> None:
    assert "schedulers" not in brought(catalog, schedulers={"other": {}})
    assert brought(catalog, schedulers={"anl": {"rate": 1}})["schedulers"] == {"anl": {}}


def test_what_a_data_set_says_of_the_attack_needs_one_and_the_usual_threat() -> None:
    own = {"epochs": 3, "attack": {"steps": 5}}
    assert data_defaults(own, {"attack": {"name": "pgd"}}, {}) == own
    assert data_defaults(own, {}, {}) == {"epochs": 3}
    assert data_defaults(own, {"attack": {"name": "pgd"}}, {"threat": {"eps": 0.1}}) == {"epochs": 3}


@pytest.mark.slow
def test_names(catalog: Catalog) -> None:
    assert name_of({"name": "pgd"}) == "pgd" and name_of({}) is None and name_of(3) is None
    assert with_names({"attack": {"steps": 3}, "epochs": 2}) == {"attack": {"name": "", "steps": 3}, "epochs": 2}
    assert default_objective(catalog.find("attack", "cw").component) == "margin"

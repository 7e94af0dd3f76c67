"""Settings that a method and a data set bring along."""

from __future__ import annotations

from typing import Any

import pytest

from rkd.core.errors import ConfigError
from rkd.registry.catalog import Catalog
from rkd.registry.defaults import (
    attack_options,
    data_defaults,
    default_objective,
    method_defaults,
    name_of,
    named_attacks,
    with_names,
)


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


def test_options_of_the_objective_go_with_it(catalog: Catalog) -> None:
    goal = {"attack": "pgd", "objective": "kl-teacher", "objective.role": "peer"}
    method = type("Method", (), {"defaults": goal})
    for table, wanted in (
        ({}, {"name": "kl-teacher", "role": "peer"}),
        ({"objective": {"name": "kl-teacher"}}, {"name": "kl-teacher", "role": "peer"}),
        ({"attack": {"name": "fgsm"}}, {"name": "kl-teacher", "role": "peer"}),
        ({"attack": {"name": "cw"}}, {"name": "margin"}),
        ({"objective": {"name": "ce"}}, {"name": "kl-teacher"}),
    ):
        assert method_defaults(method, table, catalog)["objective"] == wanted


def test_a_named_scheduler_takes_the_place_of_the_methods(catalog: Catalog) -> None:
    assert "schedulers" not in brought(catalog, schedulers={"other": {}})
    assert brought(catalog, schedulers={"anl": {"rate": 1}})["schedulers"] == {"anl": {}}


def test_several_schedulers(catalog: Catalog) -> None:
    several = type("Several", (), {"defaults": {"scheduler": ["anl", "other"]}})
    assert method_defaults(several, {}, catalog)["schedulers"] == {"anl": {}, "other": {}}


def test_options_by_an_attacks_name(catalog: Catalog) -> None:
    given = {"loss": {"name": "pgd-at"}, "attack": {"eps": 0.1, "pgd": {"steps": 3}, "cw": {"steps": 5}}}
    moved = named_attacks(given, catalog)
    assert moved["attack"] == {"eps": 0.1, "steps": 3} and moved["evaluate"] == {"options": {"cw": {"steps": 5}}}
    assert named_attacks({"attack": {"name": "cw", "cw": {"steps": 5}}}, catalog)["attack"] == {
        "name": "cw",
        "steps": 5,
    }
    with pytest.raises(ConfigError, match="this run has no attack square; there is none in its training"):
        named_attacks({"loss": {"name": "ce"}, "attack": {"square": {"queries": 3}}}, catalog)
    plain = {"attack": {"name": "pgd", "steps": 3}, "evaluate": 3}
    assert named_attacks(plain, catalog) == plain


def test_options_of_an_evaluation(catalog: Catalog) -> None:
    options, notes = attack_options({"steps": 3, "pgd": {"steps": 9}}, ["fgsm", "pgd", "cw"], catalog)
    assert options == {"pgd": {"steps": 9}, "cw": {"steps": 3}} and "attack.steps=3 is for pgd, cw" in notes[0]
    with pytest.raises(ConfigError, match="no attack of this evaluation has such an option"):
        attack_options({"queries": 3}, ["pgd"], catalog)


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

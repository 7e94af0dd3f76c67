"""What a method and a data set bring along when the user is silent."""

from collections.abc import Mapping
from typing import Any

from rkd.core.traits import LossTraits, declared, traits_of

from .catalog import Catalog
from .recipes import Table, merge, nested


def method_defaults(loss: Any, table: Mapping[str, Any], catalog: Catalog) -> Table:
    """What a loss brings along, as far as the user's table leaves it in force.

    Options of the default attack hold only as long as that attack is used; default schedulers only if none is named.
    An attack with a goal of its own (`cw`: the margin), chosen by the user, keeps it.
    """
    defaults = dict(declared(loss, LossTraits).defaults)
    wanted: Table = {}
    default_attack = defaults.pop("attack", None)
    attack = name_of(table.get("attack")) or default_attack
    own_options = {k.removeprefix("attack."): defaults.pop(k) for k in list(defaults) if k.startswith("attack.")}
    objective = defaults.pop("objective", None)
    if attack:
        wanted["attack"] = {"name": attack, **(own_options if attack == default_attack else {})}
        goal = "ce"
        if attack != default_attack and attack in catalog.entries["attack"]:
            goal = default_objective(catalog.find("attack", attack).component)
        objective = objective if goal == "ce" else goal
    if objective:
        wanted["objective"] = {"name": objective}
    scheduler = defaults.pop("scheduler", None)
    if scheduler and set(table.get("schedulers") or {}) <= {scheduler}:
        wanted["schedulers"] = {scheduler: {}}
    return merge(wanted, nested(defaults))


def default_objective(attack: Any) -> str:
    """The objective of an attack, or of its class, where the user chooses none."""
    return traits_of(attack).objective


def data_defaults(defaults: Mapping[str, Any], method: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    """The data set's usual settings. Those of the attack need an attack of the method, and the usual threat."""
    usable = "attack" in method and not table.get("threat")
    return {key: value for key, value in defaults.items() if key != "attack" or usable}


def with_names(table: Mapping[str, Any]) -> Table:
    """The table with stand-ins for names that the method will bring: `--set attack.steps=20` names no attack."""
    unnamed = [part for part in ("attack", "objective", "loss") if isinstance(table.get(part), Mapping)]
    return merge({part: {"name": ""} for part in unnamed if "name" not in table[part]}, table)


def name_of(table: Any) -> str | None:
    """The component that a section of the configuration names."""
    return table.get("name") if isinstance(table, Mapping) else None

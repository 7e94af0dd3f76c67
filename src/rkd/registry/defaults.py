"""What a method and a data set bring along when the user is silent."""

from collections.abc import Mapping, Sequence
from typing import Any

from rkd.core.errors import ConfigError, RkdError
from rkd.core.traits import LossTraits, declared, traits_of

from .catalog import Catalog
from .config import RunConfig
from .losses import SEVERAL, LossSum, loss_class, names
from .options import describe
from .recipes import Table, merge, nested


def method_defaults(loss: Any, table: Mapping[str, Any], catalog: Catalog) -> Table:
    """What a loss brings along, as far as the user's table leaves it in force.

    Options of the default attack hold only as long as that attack is used, and those of the default objective likewise;
    default schedulers, and likewise extensions, only if none is named that is not among them. An attack with a goal of
    its own (`cw`: the margin), chosen by the user, keeps it. Raises ConfigError where losses side by side bring
    contradictory settings and the user is silent.
    """
    if isinstance(loss, LossSum) and (problems := loss.contradictions(table)):
        raise ConfigError(problems)
    defaults = dict(declared(loss, LossTraits).defaults)
    wanted: Table = {}
    default_attack = defaults.pop("attack", None)
    attack = name_of(table.get("attack")) or default_attack
    own_options = {k.removeprefix("attack."): defaults.pop(k) for k in list(defaults) if k.startswith("attack.")}
    objective = default_goal = defaults.pop("objective", None)
    goal_options = {k.removeprefix("objective."): defaults.pop(k) for k in list(defaults) if k.startswith("objective.")}
    if attack:
        wanted["attack"] = {"name": attack, **(own_options if attack == default_attack else {})}
        goal = "ce"
        if attack != default_attack and attack in catalog.entries["attack"]:
            goal = default_objective(catalog.find("attack", attack).component)
        objective = objective if goal == "ce" else goal
    if objective:
        kept = default_goal == objective == (name_of(table.get("objective")) or objective)
        wanted["objective"] = {"name": objective, **(goal_options if kept else {})}
    for kind in SEVERAL:
        brought = names(defaults.pop(kind, ()))
        options = {key: defaults.pop(key) for key in list(defaults) if key.startswith(f"{kind}s.")}
        given = set(table.get(f"{kind}s") or {})
        if brought and (kind == "extension" or given <= set(brought)):
            wanted[f"{kind}s"] = merge({name: {} for name in brought}, nested(options).get(f"{kind}s", {}))
    return merge(wanted, nested(defaults))


def default_schedulers(loss: Any) -> list[str]:
    """The schedulers that a loss brings along."""
    return names(declared(loss, LossTraits).defaults.get("scheduler"))


def loss_of(table: Mapping[str, Any], catalog: Catalog) -> Any:
    """The component of the loss that a table names, or None where there is none."""
    try:
        return loss_class(catalog, str(name_of(table.get("loss")) or RunConfig().loss.name))
    except RkdError:
        return None  # told with all other problems, when the run is resolved


def named_attacks(table: Mapping[str, Any], catalog: Catalog) -> Table:
    """The table with `attack.NAME.KEY` where it belongs: `attack.KEY` if NAME is the training's attack, else
    `evaluate.options.NAME.KEY`. Raises ConfigError for an attack that is neither."""
    attack, evaluate = table.get("attack"), table.get("evaluate", {})
    if not isinstance(attack, Mapping) or not isinstance(evaluate, Mapping):
        return dict(table)
    attacks = catalog.entries["attack"]
    by_name = {name: options for name, options in attack.items() if isinstance(options, Mapping) and name in attacks}
    if not by_name:
        return dict(table)
    own = name_of(attack) or declared(loss_of(table, catalog), LossTraits).defaults.get("attack")
    evaluated = evaluate.get("attacks", RunConfig().evaluate.attacks)
    if strange := [name for name in by_name if name != own and name not in evaluated]:
        raise ConfigError([
            f"attack.{name}: this run has no attack {name}; there is {own or 'none'} in its training, and "
            f"{', '.join(evaluated) or 'none'} in its evaluation" for name in strange
        ])  # fmt: skip
    moved = {"evaluate": {"options": {name: options for name, options in by_name.items() if name != own}}}
    rest = {key: value for key, value in attack.items() if key not in by_name}
    return merge(moved, {**table, "attack": {**rest, **by_name.get(own, {})}})


def attack_options(given: Mapping[str, Any], attacks: Sequence[str], catalog: Catalog) -> tuple[Table, list[str]]:
    """Options of an evaluation's attacks: `{NAME: {KEY: VALUE}}` as it stands, `{KEY: VALUE}` for all that have such an
    option; and which these are, in words. Raises ConfigError where none has."""
    options = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    notes = []
    for key, value in given.items():
        if key in options:
            continue
        known = [name for name in attacks if key in {o.name for o in describe(catalog.find("attack", name).factory)}]
        if not known:
            raise ConfigError(f"attack.{key}: no attack of this evaluation has such an option ({', '.join(attacks)})")
        options = merge({name: {key: value} for name in known}, options)
        notes.append(f"attack.{key}={value} is for {', '.join(known)}; for one of them type attack.NAME.{key}={value}")
    return options, notes


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

"""Losses by name: one, or several side by side, `rslad+igdm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rkd.core.errors import ConfigError
from rkd.core.traits import LossTraits, declared
from rkd.core.types import Schedule

from .catalog import Catalog, companion_words
from .options import plain, values_of
from .recipes import Table

if TYPE_CHECKING:
    from torch import Tensor

    from rkd.core.step import Step

SEVERAL = ("scheduler", "extension")
"""Keys of a loss's defaults that take several names."""


class LossSum:
    """The terms of several losses side by side. A term whose name an earlier loss has is called `LOSS.TERM`.

    Roles, views, companions and recipes for teachers are everybody's. Attack, objective and other defaults are those of
    the first; `clashes` are the defaults in which another one, unless it is `auxiliary`, wants something else. Raises
    ConfigError for views, companions or targets that cannot both be.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        traits = {name: declared(part, LossTraits) for name, part in parts.items()}
        roles = [one.roles for one in traits.values()]
        self._usual_roles = {
            n: one.roles[0] if one.roles and len(one.roles) == 1 else None for n, one in traits.items()
        }
        self.roles: Sequence[str] | None = None
        if None not in roles:
            self.roles = list(dict.fromkeys(role for one in roles for role in one or ()))
        self.prepare = _united({name: one.prepare for name, one in traits.items()}, "prepare teachers for the role")
        self.derived_views = _united({name: one.derived_views for name, one in traits.items()}, "make the view")
        self.companions = _united({name: one.companions for name, one in traits.items()}, "declare the companion")
        targets = {name: {"targets": one.targets} for name, one in traits.items() if one.targets}
        self.targets = _united(targets, "make").get("targets")
        self.auxiliary = all(one.auxiliary for one in traits.values())
        self.clashes: dict[str, dict[str, Any]] = {}
        self.defaults: Table = {}
        first = next((name for name, one in traits.items() if not one.auxiliary), next(iter(traits)))
        for name in [first, *(name for name in traits if name != first)]:
            for key, value in traits[name].defaults.items():
                if key in SEVERAL:
                    self.defaults[key] = list(dict.fromkeys([*names(self.defaults.get(key)), *names(value)]))
                elif name == first or (key not in self.defaults and key.startswith(("schedulers.", "extensions."))):
                    self.defaults[key] = value
                elif not traits[name].auxiliary and self.defaults.get(key) != value:
                    self.clashes.setdefault(key, {first: self.defaults.get(key)})[name] = value
        self._names: dict[tuple[str, str], str] = {}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            step.usual_role = self._usual_roles[name]
            for term, value in part(step).items():
                own = self._names[name, term] = f"{name}.{term}" if self._has_earlier(name, term) else term
                terms[own] = value
        step.usual_role = None
        return terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LossSum) and self.parts == other.parts

    @property
    def weights(self) -> dict[str, Schedule]:
        found = ((name, declared(part, LossTraits).weights) for name, part in self.parts.items())
        return {self._names.get((name, term), term): w for name, own in found for term, w in own.items()}

    def contradictions(self, table: Mapping[str, Any]) -> list[str]:
        """What the losses want in different ways and a user's table does not decide, a sentence each."""
        problems = []
        for key, wanted in self.clashes.items():
            setting = f"{key}.name" if key in ("attack", "objective") else key
            section, _, option = setting.partition(".")
            given = table.get(section)
            if not (isinstance(given, Mapping) and option in given):
                said = " and ".join(f"{value or 'none'} ({name})" for name, value in wanted.items())
                problems.append(f"{key}: the losses side by side want {said}; choose with --set {setting}=...")
        return problems

    def facts(self, catalog: Catalog) -> dict[str, Any]:
        """All that `rkd info` tells of the losses side by side, as plain values."""
        return {
            "kind": "loss",
            "name": "+".join(self.parts),
            "parts": [catalog.find("loss", name).facts() for name in self.parts],
            "roles": list(self.roles or ()),
            "companions": companion_words(self.companions),
            "defaults": plain(self.defaults),
            "contradictions": self.contradictions({}),
        }

    def _has_earlier(self, name: str, term: str) -> bool:
        earlier = list(self.parts)[: list(self.parts).index(name)]
        return any((other, term) in self._names for other in earlier)


def create_loss(catalog: Catalog, name: str, options: Mapping[str, Any]) -> Any:
    """A loss by its name, with checked options; of a sum they stand in tables by its losses' names. Raises ConfigError,
    UnknownName."""
    parts = names_of(name)
    if len(parts) == 1:
        return catalog.create("loss", name, options, "loss")
    problems: list[str] = []
    for key in options:
        if key not in parts:
            problems.append(f"loss.{key}: say of which loss, {' or '.join(f'loss.{part}.{key}' for part in parts)}")
    made: dict[str, Any] = {}
    for part in parts:
        given = options.get(part, {})
        try:
            if not isinstance(given, Mapping):
                raise ConfigError([f"loss.{part}: is a table of options"])
            made[part] = catalog.create("loss", part, given, f"loss.{part}")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return LossSum(made)


def loss_class(catalog: Catalog, name: str) -> Any:
    """What a loss declares before it is made: its class, or the sum of classes. Raises UnknownName, ConfigError."""
    found = {part: catalog.find("loss", part).component for part in names_of(name)}
    return LossSum(found) if len(found) > 1 else found[name]


def names_of(name: str) -> list[str]:
    """The losses of a sum. Raises ConfigError for one that is named twice."""
    parts = [part.strip() for part in name.split("+")]
    if len(set(parts)) < len(parts) or "" in parts:
        raise ConfigError(f"loss: {name!r} is no sum of different losses, such as rslad+igdm")
    return parts


def loss_options(loss: Any) -> Table:
    """All options of a loss with their values."""
    return (
        {name: values_of(part) for name, part in loss.parts.items()} if isinstance(loss, LossSum) else values_of(loss)
    )


def names(given: Any) -> list[str]:
    """One name or several, as a list."""
    return [given] if isinstance(given, str) else list(given or ())


def _united(tables: Mapping[str, Mapping[str, Any]], what: str) -> Table:
    united: Table = {}
    owner: dict[str, str] = {}
    for name, table in tables.items():
        for key, value in table.items():
            if key in united and united[key] != value:
                raise ConfigError(f"loss: {owner[key]} and {name} both {what} {key!r}, each in its own way")
            united[key], owner[key] = value, name
    return united

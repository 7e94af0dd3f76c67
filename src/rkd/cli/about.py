"""Finding a component by its name alone, and what there is to know about it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rkd.core.errors import UnknownName, did_you_mean
from rkd.core.hooks import KINDS
from rkd.core.interfaces import Family, traits_of
from rkd.registry import options
from rkd.registry.catalog import Catalog, Entry


def find(catalog: Catalog, name: str, kind: str | None = None) -> list[Entry]:
    """The components of that name, of any kind. Raises UnknownName with near names of all kinds."""
    kinds = [kind] if kind else list(KINDS)
    found = []
    for one in kinds:
        if name in catalog.entries[one]:
            found += catalog.entries[one][name]  # a family by its own name too, and every owner of a name
            continue
        try:
            found.append(catalog.find(one, name))
        except UnknownName as error:
            unknown = error
    if found:
        return found
    if kind:
        raise unknown
    near = did_you_mean(name, dict.fromkeys(known for one in kinds for known in catalog.names(one)))
    broken = ", ".join(plugin.key for plugin in catalog.plugins.broken)
    more = f" Plugins that could not be loaded: {broken}." if broken else ""
    raise UnknownName(f"nothing is called {name!r}.{near} `rkd list-plugins` lists all there is.{more}")


def component_of(entry: Entry) -> Any:
    """The class or function behind an entry; a family's is the one all its members share."""
    return entry.component.component if isinstance(entry.component, Family) else entry.component


def about(entry: Entry) -> dict[str, Any]:
    """What there is to know, as plain values."""
    component = component_of(entry)
    fixed = dict(entry.fixed)
    own = inspect.getdoc(component) or ""
    module = inspect.getdoc(sys.modules.get(component.__module__)) or ""
    return {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
        "plugin": entry.plugin.name,
        "module": component.__module__,
        "examples": list(entry.component.examples) if isinstance(entry.component, Family) else [],
        # A dataclass without a docstring gets its signature for one.
        "description": "" if own.startswith(f"{getattr(component, '__name__', '')}(") else own,
        "about": module,
        "options": [
            {"name": o.name, "type": o.type, "default": options.plain(o.default), "required": o.required}
            | ({"fixed": fixed[o.name]} if o.name in fixed else {})
            for o in options.describe(component)
        ],
        "traits": attack_traits(component) if entry.kind == "attack" else {},
        "roles": list(getattr(component, "roles", ())),
        "defaults": options.plain(_mapping(getattr(component, "defaults", {}))),
    }  # fmt: skip


def attack_traits(attack: Any) -> dict[str, Any]:
    """The traits of an attack's class that are no options of it."""
    own = {option.name for option in options.describe(attack)}
    return {name: value for name, value in asdict(traits_of(attack)).items() if name not in {*own, "eps", "norm"}}


def in_words(traits: Mapping[str, Any]) -> str:
    """`objective = ce, black_box`: the values that are words, and what holds; `bounded` where it does not."""
    words = [f"{name} = {value}" for name, value in traits.items() if isinstance(value, str)]
    words += [name for name, value in traits.items() if value is True and name != "bounded"]
    return ", ".join([*words, *(["keeps to no ball"] if traits.get("bounded") is False else [])])


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}

"""`rkd info`: all there is to know about a component."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rkd.core.errors import UnknownName, did_you_mean
from rkd.core.hookspecs import KINDS

from .shared import App, json_option, pass_app, plugin_option

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog, Entry

    from .terminal import Terminal


@click.command("info")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Where several kinds have a component of that name.")
@json_option
@plugin_option
@pass_app
def info(app: App, name: str, kind: str | None) -> None:
    """Show a component's description, options and defaults."""
    with app.terminal.guarded():
        found = [about(entry) for entry in find(app.catalog(), name, kind)]
    if app.json:
        app.terminal.json(found[0] if len(found) == 1 else {"components": found})
        return
    for number, item in enumerate(found):
        if number:
            app.terminal.result()
        _show(item, app.terminal)


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


def about(entry: Entry) -> dict[str, Any]:
    """What there is to know, as plain values."""
    from rkd.core.interfaces import Family
    from rkd.registry import options

    family = entry.component if isinstance(entry.component, Family) else None
    component = family.component if family else entry.component
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
        "examples": list(family.examples) if family else [],
        "description": "" if own.startswith(f"{component.__name__}(") else own,
        "about": module,
        "options": [
            {"name": o.name, "type": o.type, "default": options.plain(o.default), "required": o.required}
            | ({"fixed": fixed[o.name]} if o.name in fixed else {})
            for o in options.describe(component)
        ],
        "roles": list(getattr(component, "roles", ())),
        "defaults": options.plain(_mapping(getattr(component, "defaults", {}))),
    }  # fmt: skip


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _show(item: Mapping[str, Any], terminal: Terminal) -> None:
    terminal.result(f"{item['kind']} {item['name']}", "bold")
    terminal.result(f"from {item['distribution']} {item['version']} ({item['module']})", "dim")
    if item["examples"]:
        terminal.result(f"such as {', '.join(item['examples'])}")
    # BibTeX is for `rkd cite`.
    about = re.sub(r"\n*```bibtex\n.*?```", "", item["about"], flags=re.DOTALL)
    for text in (item["description"], about):
        if text:
            terminal.result(f"\n{text}", wrap=True)
    if about != item["about"]:
        terminal.result(f"\nto cite it: rkd cite {item['name']}")
    if item["roles"]:
        terminal.result(f"\nteachers, by role: {', '.join(item['roles'])}")
    if item["defaults"]:
        defaults = ", ".join(f"{key} = {value}" for key, value in item["defaults"].items())
        terminal.result(f"\nthe method's defaults: {defaults}", wrap=True)
    if item["options"]:
        terminal.result()
        rows = [[o["name"], _default(o), o["type"]] for o in item["options"]]
        terminal.table(["option", "default", ("type", "wrap")], rows)
    else:
        terminal.result("\nno options")


def _default(option: Mapping[str, Any]) -> str:
    if "fixed" in option:
        return f"{option['fixed']} (by the name)"
    if option["required"]:
        return "required"
    value = option["default"]
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

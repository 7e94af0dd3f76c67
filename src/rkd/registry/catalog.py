"""{kind: {name: component}}, and clear words when a name is unknown or has two owners."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rkd.core.errors import RkdError, UnknownName, did_you_mean, shown
from rkd.core.hooks import KINDS
from rkd.core.interfaces import Family

from . import options
from .plugins import Plugin, Plugins, load_plugins

LONGEST = 80
"""Characters of a component's name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One component under its name. For a family, `options` are those that the name itself fixed."""

    kind: str
    name: str
    component: Any
    plugin: Plugin
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the component's docstring."""
        component = self.component.component if isinstance(self.component, Family) else self.component
        text = inspect.getdoc(component) or ""
        # A dataclass without a docstring gets its signature for one.
        first = text.strip().split("\n")[0]
        return "" if first.startswith(f"{getattr(component, '__name__', '')}(") else first


class Catalog:
    """Everything that the loaded plugins provide."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.entries: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}
        for kind, hook in KINDS.items():
            for implementation in getattr(plugins.manager.hook, hook).get_hookimpls():
                plugin = plugins.plugins[implementation.plugin_name]
                self._collect(kind, plugin, implementation.function)

    def _collect(self, kind: str, plugin: Plugin, hook: Any) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                provided = hook()
            if not isinstance(provided, Mapping):
                raise TypeError(f"{KINDS[kind]} must return {{name: component}}, got {type(provided).__name__}")
            found = [_entry(kind, name, component, plugin) for name, component in provided.items()]
        except (Exception, SystemExit) as error:
            self.plugins.fail(plugin, error)
            self._forget(plugin)
            return
        for entry in found:
            self.entries[kind].setdefault(entry.name, []).append(entry)

    def _forget(self, plugin: Plugin) -> None:
        for names in self.entries.values():
            for name in list(names):
                names[name] = [entry for entry in names[name] if entry.plugin.key != plugin.key]
                if not names[name]:
                    del names[name]

    def names(self, kind: str) -> list[str]:
        """Known names, families by their pattern's name."""
        return sorted(self.entries[kind])

    def all(self) -> Iterable[Entry]:
        """Every entry, by kind and name."""
        for names in self.entries.values():
            for name in sorted(names):
                yield from names[name]

    def find(self, kind: str, name: str) -> Entry:
        """The component of that name, or `DISTRIBUTION/NAME`. Raises UnknownName, or RkdError for two owners."""
        distribution, slash, short = name.partition("/")
        # A path may follow a prefix (imagefolder:/data): only a bare word before the slash is a distribution.
        if not slash or not re.fullmatch(r"[\w.-]+", distribution):
            distribution, short = "", name
        found = self._named(kind, short, distribution)
        if not found:
            raise UnknownName(self._unknown(kind, name))
        if len(found) > 1:
            owners = " and ".join(f"{entry.plugin.distribution}/{short}" for entry in found)
            raise RkdError(f"two plugins provide the {kind} {short!r}; type {owners.replace(' and ', ' or ')}")
        return found[0]

    def create(self, kind: str, name: str, given: Mapping[str, Any] | None = None, where: str = "") -> Any:
        """An instance of the component, with validated options. Raises ConfigError, UnknownName."""
        entry = self.find(kind, name)
        return options.instantiate(entry, given or {}, where or kind)

    def _named(self, kind: str, name: str, distribution: str = "") -> list[Entry]:
        """What the name means (to one distribution): entries of that very name, else of families that it fits."""
        exact, fitting = [], []
        for known, entries in self.entries[kind].items():
            for entry in entries:
                if distribution and entry.plugin.distribution != distribution:
                    continue
                if not isinstance(entry.component, Family):
                    if known == name:
                        exact.append(entry)
                elif match := re.fullmatch(entry.component.pattern, name):
                    fixed = tuple((key, value) for key, value in match.groupdict().items() if value is not None)
                    fitting.append(Entry(kind, name, entry.component.component, entry.plugin, fixed))
        return exact or fitting

    def _unknown(self, kind: str, name: str) -> str:
        known = self.names(kind)
        examples = [
            example
            for entries in self.entries[kind].values()
            for entry in entries
            if isinstance(entry.component, Family)
            for example in entry.component.examples
        ]
        near = did_you_mean(name, dict.fromkeys([*known, *examples]))
        message = f"there is no {kind} {shown(name)}.{near} Known: {', '.join(known)}."
        broken = self.plugins.broken
        if broken:
            names = ", ".join(f"{plugin.name} of {plugin.distribution} {plugin.version}" for plugin in broken)
            message += f" Plugins that could not be loaded: {names}; `rkd list-plugins` says why."
        return message

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(KINDS)


def _entry(kind: str, name: Any, component: Any, plugin: Plugin) -> Entry:
    """What a plugin provides, if it is fit to be looked up and shown. Raises TypeError, ValueError, re.error."""
    if not isinstance(name, str) or not (callable(component) or isinstance(component, Family)):
        raise TypeError(f"{KINDS[kind]}: {shown(name)} must name a class, a function or a Family")
    if not name or not name.isprintable() or name != name.strip() or len(name) > LONGEST:
        raise ValueError(f"{KINDS[kind]}: {shown(name)} is no name: 1 to {LONGEST} printable characters")
    if isinstance(component, Family):
        re.compile(component.pattern)
    entry = Entry(kind, name, component, plugin)
    if not isinstance(entry.summary, str):
        raise TypeError(f"{KINDS[kind]}: the docstring of {name!r} is no text")
    return entry


def load_catalog(files: Iterable[Path | str] = ()) -> Catalog:
    """The catalog of all installed plugins and the local `files`."""
    return Catalog(load_plugins(files))

"""{kind: {name: component}}, clear words when a name is unknown or has two owners, and all that a component says."""

import contextlib
import copy
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rkd.core.errors import ConfigError, RkdError, UnknownName
from rkd.core.traits import LossTraits, declared, name_of, traits_of
from rkd.core.types import Companion, at
from rkd.storage.text import did_you_mean, read_text, shown

from . import options
from .hooks import KINDS, Family
from .plugins import Plugin, Plugins, load_plugins
from .zoo import ZooTeacher

LONGEST = 80
"""Characters of a component's name."""


PYTHON = "python"
"""The distribution of components that Python code gave by hand: no plugin provides them to another process."""

OBJECT = "object:"
"""What the names of objects begin with that one run was given."""


@dataclass(frozen=True, slots=True)
class Given:
    """An object as a component: whoever asks for it gets this very object, with its options as they are."""

    value: Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One component under its name. For a family, `options` are those that the name itself fixed."""

    kind: str
    name: str
    component: Any
    plugin: Plugin
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def factory(self) -> Any:
        """The class or function behind the name; a family's is the one that all its members share."""
        if isinstance(self.component, Given):
            return type(self.component.value)
        return self.component.component if isinstance(self.component, Family) else self.component

    @property
    def description(self) -> str:
        """The component's docstring, or what a catalogue says of a teacher."""
        if isinstance(self.component, ZooTeacher):
            return self.component.summary
        text = (inspect.getdoc(self.factory) or "").strip()
        # A dataclass without a docstring gets its signature for one.
        return "" if text.startswith(f"{name_of(self.factory)}(") else text

    @property
    def summary(self) -> str:
        """The first line of the component's docstring."""
        return self.description.split("\n")[0]

    def create(self, given: Mapping[str, Any], setting: str) -> Any:
        """An instance with checked options; `setting` names them in errors. A function is its own instance.

        Raises ConfigError.
        """
        if isinstance(self.component, Given):
            own = options.values_of(self.component.value)
            if other := [name for name, value in given.items() if own.get(name) != options.plain(value)]:
                raise ConfigError([
                    f"{setting}.{name}: the object given for {self.name} has {own.get(name, 'no such option')}, and "
                    f"asked for is {options.plain(given[name])}" for name in other
                ])  # fmt: skip
            return self.component.value
        if not isinstance(self.component, type):
            if given:
                raise ConfigError([f"{setting}.{name}: {self.name} has no options" for name in given])
            return self.component
        fixed = dict(self.fixed)
        if clash := [f"{setting}.{name}: the name {self.name!r} fixes it already" for name in given if name in fixed]:
            raise ConfigError(clash)
        values = options.validate(self.component, {**fixed, **given}, setting)
        try:
            return self.component(**values)
        except (ValueError, RkdError) as error:
            raise ConfigError(f"{setting}: {error}") from None

    def facts(self) -> dict[str, Any]:
        """All that `rkd info` tells, as plain values."""
        component, fixed, loss = self.factory, dict(self.fixed), declared(self.factory, LossTraits)
        usual = declared(self._usual(), LossTraits) if self.kind == "loss" else LossTraits()
        known = component if isinstance(component, ZooTeacher) else None
        return {
            "kind": self.kind,
            "name": self.name,
            "distribution": self.plugin.distribution,
            "version": self.plugin.version,
            "plugin": self.plugin.name,
            "module": self.plugin.module if known else component.__module__,
            "examples": list(self.component.examples) if isinstance(self.component, Family) else [],
            "description": self.description,
            "about": "" if known else inspect.getdoc(sys.modules.get(component.__module__)) or "",
            "known": known.facts(self.name) if known else {},
            "options": [
                {"name": o.name, "type": o.type, "default": options.plain(o.default), "required": o.required}
                | ({"fixed": fixed[o.name]} if o.name in fixed else {})
                for o in options.describe(component)
            ],
            "traits": attack_traits(component) if self.kind == "attack" else {},
            "roles": list(loss.roles or ()),
            "companions": companion_words(usual.companions),
            "weights": {name: [at(weight, when) for when in (0, 0.5, 1)] for name, weight in usual.weights.items()},
            "defaults": options.plain(dict(loss.defaults) if isinstance(loss.defaults, Mapping) else {}),
        }

    def _usual(self) -> Any:
        """The component with its default options, or as it is where one is required."""
        if not isinstance(self.factory, type) or any(option.required for option in options.describe(self.factory)):
            return self.factory
        return self.factory()

    def citations(self) -> dict[str, str]:
        """BibTeX entries by their keys, of the component's module or else of its package: those in ```bibtex blocks of
        its docstring, and those that a line `References: KEY, KEY` there names, from the nearest `references.bib`."""
        module = self.factory.__module__
        for name in (module, module.rpartition(".")[0]):
            loaded = sys.modules.get(name)
            text = getattr(loaded, "__doc__", None) or ""
            if entries := bibtex(text) | _referenced(text, getattr(loaded, "__file__", None)):
                return entries
        return {}


class Catalog:
    """Everything that the loaded plugins provide."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.entries: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}
        found: list[Entry] = []
        for kind, hook in KINDS.items():
            for implementation in getattr(plugins.manager.hook, hook).get_hookimpls():
                plugin = plugins.plugins[implementation.plugin_name]
                with plugins.guarded(plugin):
                    found += _provided(kind, plugin, implementation.function())
        for entry in found:
            if not plugins.plugins[entry.plugin.key].error:  # none of a plugin of which one part is broken
                self.entries[entry.kind].setdefault(entry.name, []).append(entry)

    def extended(self, components: Mapping[str, Mapping[str, Any]]) -> "Catalog":
        """This catalog with `{kind: {name: component}}` of Python code besides; a component may be a `Given`. Raises
        RkdError for what is no component, or has the name of one of a plugin."""
        other = copy.copy(self)
        other.entries = {kind: dict(names) for kind, names in self.entries.items()}
        for kind, named in components.items():
            for name, component in named.items():
                source = name_of(component.value if isinstance(component, Given) else component)
                try:
                    entry = _entry(kind, name, component, Plugin(PYTHON, PYTHON, "", source))
                except (TypeError, ValueError, re.error) as error:
                    raise RkdError(f"{kind} {shown(name)}: {error}") from None
                if owners := [e.plugin for e in self.entries[kind].get(name, []) if e.plugin.distribution != PYTHON]:
                    raise RkdError(f"{owners[0].distribution} provides a {kind} {name!r} already: take another name")
                other.entries[kind][name] = [entry]
        return other

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
        entries = self._named(kind, short, distribution)
        if not entries:
            raise UnknownName(self._unknown(kind, name))
        if len(entries) > 1:
            owners = " and ".join(f"{entry.plugin.distribution}/{short}" for entry in entries)
            raise RkdError(f"two plugins provide the {kind} {short!r}; type {owners.replace(' and ', ' or ')}")
        return entries[0]

    def find_all(self, name: str, kind: str | None = None) -> list[Entry]:
        """The components of that name, of any kind or as KIND:NAME. Raises UnknownName with near names of all kinds."""
        first, _, rest = name.partition(":")
        if kind is None and first in KINDS and rest:
            kind, name = first, rest
        if kind and name not in self.entries[kind]:
            return [self.find(kind, name)]
        entries: list[Entry] = []
        for each in [kind] if kind else KINDS:
            if name in self.entries[each]:
                entries += self.entries[each][name]  # a family by its own name too, and every owner of a name
                continue
            with contextlib.suppress(UnknownName):
                entries.append(self.find(each, name))
        if not entries:
            near = did_you_mean(name, dict.fromkeys(known for each in KINDS for known in self.names(each)))
            broken = ", ".join(plugin.key for plugin in self.plugins.broken)
            more = f" Plugins that could not be loaded: {broken}." if broken else ""
            raise UnknownName(f"nothing is called {name!r}.{near} `rkd list-plugins` lists all there is.{more}")
        return entries

    def create(self, kind: str, name: str, given: Mapping[str, Any] | None = None, setting: str = "") -> Any:
        """An instance of the component, with validated options. Raises ConfigError, UnknownName."""
        return self.find(kind, name).create(given or {}, setting or kind)

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
        if name.startswith(OBJECT):
            given = [known for known in self.names(kind) if known.startswith(OBJECT)]
            return (
                f"the {kind} {shown(name)} was an object of Python code, which no file holds: give it again from "
                "there (rkd.train, rkd.load_run; docs/python.md)" + (f"; given is {', '.join(given)}" if given else "")
            )
        known = self.names(kind)
        examples = [
            example
            for entries in self.entries[kind].values()
            for entry in entries
            if isinstance(entry.component, Family)
            for example in entry.component.examples
        ]
        near = did_you_mean(name, dict.fromkeys([*known, *examples]))
        if kind == "zoo":
            return f"there is no teacher {shown(name)} in the catalogue.{near} `rkd teachers list` lists all of them"
        message = f"there is no {kind} {shown(name)}.{near} Known: {', '.join(known)}."
        broken = self.plugins.broken
        if broken:
            names = ", ".join(f"{plugin.name} of {plugin.distribution} {plugin.version}" for plugin in broken)
            message += f" Plugins that could not be loaded: {names}; `rkd list-plugins` says why."
        return message


def _provided(kind: str, plugin: Plugin, components: Any) -> list[Entry]:
    """What a hook returned. Raises TypeError, ValueError, re.error."""
    if not isinstance(components, Mapping):
        raise TypeError(f"{KINDS[kind]} must return {{name: component}}, got {type(components).__name__}")
    return [_entry(kind, name, component, plugin) for name, component in components.items()]


def _entry(kind: str, name: Any, component: Any, plugin: Plugin) -> Entry:
    """What a plugin provides, if it is fit to be looked up and shown. Raises TypeError, ValueError, re.error."""
    what, fits = "a class, a function or a Family", callable(component) or isinstance(component, (Family, Given))
    if kind == "zoo":
        what, fits = "a ZooTeacher", isinstance(component, ZooTeacher)
    if not isinstance(name, str) or not fits:
        raise TypeError(f"{KINDS[kind]}: {shown(name)} must name {what}")
    if not name or not name.isprintable() or name != name.strip() or len(name) > LONGEST:
        raise ValueError(f"{KINDS[kind]}: {shown(name)} is no name: 1 to {LONGEST} printable characters")
    if isinstance(component, Family):
        re.compile(component.pattern)
    entry = Entry(kind, name, component, plugin)
    if not isinstance(entry.summary, str):
        raise TypeError(f"{KINDS[kind]}: the docstring of {name!r} is no text")
    return entry


def attack_traits(attack: Any) -> dict[str, Any]:
    """The traits of an attack's class that are no options of it."""
    own = {option.name for option in options.describe(attack)}
    return {
        name: value for name, value in asdict(traits_of(attack)).items() if name not in {*own, "eps", "norm", "steps"}
    }


def bibtex(text: str) -> dict[str, str]:
    """The entries in ```bibtex blocks, by their keys."""
    entries: dict[str, str] = {}
    for block in re.findall(r"```bibtex\n(.*?)```", text, re.DOTALL):
        entries |= _bib_entries(block)
    return entries


def _bib_entries(text: str) -> dict[str, str]:
    entries = {}
    for entry in re.split(r"(?m)^(?=@)", text):
        if match := re.match(r"@\w+\s*\{\s*([^,\s]+)\s*,", entry):
            entries[match.group(1)] = entry.strip()
    return entries


def reference_keys(text: str) -> list[str]:
    """The keys in lines `References: KEY, KEY` of a docstring; after a comma the next line goes on."""
    lines = re.findall(r"^ *References: +([\w:.-]+(?:,\s+[\w:.-]+)*)", text, re.MULTILINE)
    return [key for line in lines for key in re.split(r",\s+", line)]


def _referenced(text: str, file: str | None) -> dict[str, str]:
    """The entries that a module's docstring names, from the `references.bib` beside it or above it in its package."""
    keys = reference_keys(text)
    folder = Path(file).parent if file and keys else None
    while folder is not None:
        if (path := folder / "references.bib").is_file():
            known = _bib_entries(read_text(path))
            return {key: known[key] for key in keys if key in known}
        folder = folder.parent if (folder / "__init__.py").is_file() else None
    return {}


def load_catalog(files: Iterable[Path | str] = ()) -> Catalog:
    """The catalog of all installed plugins and the local `files`."""
    return Catalog(load_plugins(files))


def companion_words(companions: Mapping[str, Companion]) -> dict[str, str]:
    """By name, how each net beside the student begins and moves."""
    words = {}
    for name, one in companions.items():
        start = "like the student" if one.of == "student" else f"starts as the teacher {one.of}"
        words[name] = f"learns, {start}" if one.follows is None else "the student's moving average"
    return words

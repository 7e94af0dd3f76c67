"""`rkd plugins doctor`: what the installed plugins are, how long they take to import, and what is wrong with them."""

import ast
import contextlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rkd import __version__
from rkd.registry.catalog import Catalog
from rkd.registry.hooks import KINDS
from rkd.registry.plugins import GROUP, Plugin
from rkd.storage.text import read_text

OWN = "rkd-toolkit"
"""The distribution of the built-in plugins."""

SLOW = 1.0
"""Seconds of an import from which on it is named: every command waits for it."""

PUBLIC = {"", "ops", "plugin", "testing"}
"""What of rkd a plugin may import."""


@dataclass
class Diagnosis:
    """One plugin. `seconds` its import took, without torch and rkd; `hooks`: what it registers, by kind; `problems`:
    what is wrong, with what to do."""

    plugin: Plugin
    seconds: float
    hooks: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def diagnose(catalog: Catalog) -> list[Diagnosis]:
    """All plugins, those of others first, the slowest of them first."""
    found = []
    for plugin in catalog.plugins.plugins.values():
        diagnosis = Diagnosis(plugin, catalog.plugins.seconds.get(plugin.key, 0.0))
        for entry in catalog.all():
            if entry.plugin.key == plugin.key:
                diagnosis.hooks.setdefault(entry.kind, []).append(entry.name)
        diagnosis.problems += _problems(plugin, diagnosis, catalog)
        found.append(diagnosis)
    return sorted(found, key=lambda d: (d.plugin.distribution == OWN, -d.seconds, d.plugin.key))


def _problems(plugin: Plugin, diagnosis: Diagnosis, catalog: Catalog) -> Iterator[str]:
    if plugin.error:
        yield f"could not be loaded: {plugin.error}"
    elif not plugin.disabled and not diagnosis.hooks and not _adds_commands(plugin, catalog):
        yield f"registers nothing: it has no hook under @hookimpl; hooks: {', '.join(KINDS.values())}, rkd_commands"
    if diagnosis.seconds > SLOW and plugin.distribution != OWN:
        yield f"takes {diagnosis.seconds:.1f} s to import, at every command: import what is large inside of functions"
    for kind, names in diagnosis.hooks.items():
        for name in names:
            others = [e.plugin for e in catalog.entries[kind][name] if e.plugin.key != plugin.key]
            if others:
                owners = ", ".join(f"{other.distribution}/{name}" for other in (*others, plugin))
                yield f"{kind} {name!r} is provided by {others[0].key}, too: users have to type one of {owners}"
    if plugin.distribution == "file":
        yield from _private_imports(Path(plugin.module))
    elif plugin.distribution != OWN:
        yield from _versions(plugin)
        with contextlib.suppress(KeyError, TypeError):  # it was not loaded, or has no file
            yield from _private_imports(Path(inspect.getfile(sys.modules[plugin.module])))


def _adds_commands(plugin: Plugin, catalog: Catalog) -> bool:
    hooks = catalog.plugins.manager.hook.rkd_commands.get_hookimpls()
    return any(hook.plugin_name == plugin.key for hook in hooks)


def _versions(plugin: Plugin) -> Iterator[str]:
    """What the package says of the rkd that it needs."""
    copies = [d for d in importlib.metadata.distributions(name=plugin.distribution)
              if d.entry_points.select(group=GROUP)]  # fmt: skip
    if len({str(copy.locate_file("")) for copy in copies}) > 1:
        places = " and ".join(sorted({str(copy.locate_file("")) for copy in copies}))
        yield f"is installed twice, in {places}: the first on Python's path is taken; uninstall one"
    needed = [line for copy in copies[:1] for line in copy.requires or [] if re.match(r"rkd[-_.]toolkit\b", line, re.I)]
    if copies and not needed:
        yield f'does not say that it needs rkd: dependencies = ["rkd-toolkit>={__version__}"]'
    for line in needed:
        for bound in re.findall(r">=\s*([\d.]+)", line.partition(";")[0]):
            if _numbers(bound) > _numbers(__version__):
                yield f"needs rkd-toolkit {bound} or newer, and this is {__version__}: upgrade one of them"
        for bound in re.findall(r"<\s*([\d.]+)", line.partition(";")[0]):
            if _numbers(bound) <= _numbers(__version__):
                yield f"is for rkd-toolkit below {bound}, and this is {__version__}: upgrade it"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _private_imports(file: Path) -> Iterator[str]:
    """Imports of modules of rkd that may move at any time."""
    try:
        tree = ast.parse(read_text(file))
    except (OSError, SyntaxError, ValueError):
        return  # told as the reason why it could not be loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
        else:
            continue
        for module in modules:
            room = module.removeprefix("rkd").lstrip(".").partition(".")[0]
            if module.partition(".")[0] == "rkd" and room not in PUBLIC:
                yield f"{file.name}, line {node.lineno}: {module} is private and may move; import from rkd.plugin"

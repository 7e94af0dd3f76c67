"""Loading plugins, one by one, so that a broken one is reported and stops nothing.

Plugins are entry points of the group `rkd`; each names a module with registration hooks. Local files come in only
when asked for. `RKD_DISABLE_PLUGINS=a,b` leaves out plugins by entry-point name or distribution (`*` and `?` work).
"""

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from rkd.core.errors import RkdError

from .hooks import RegistrationHooks

GROUP = "rkd"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin: where it comes from, and why it could not be loaded, if so."""

    name: str
    distribution: str
    version: str
    module: str
    error: str | None = None
    details: str | None = None
    disabled: bool = False

    @property
    def key(self) -> str:
        """The name it is registered under."""
        return f"{self.distribution}/{self.name}"


class Plugins:
    """The loaded plugins with their pluggy manager."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(RegistrationHooks)
        self.plugins: dict[str, Plugin] = {}

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins.values() if plugin.error]

    def add(self, plugin: Plugin, load: Any) -> None:
        """Load and register one plugin; whatever goes wrong becomes its `error`."""
        try:
            # A plugin that prints would spoil the one JSON object that `--json` promises on stdout.
            with contextlib.redirect_stdout(sys.stderr):
                module = load()
                self.manager.register(module, name=plugin.key)
            self.manager.check_pending()
        except (Exception, SystemExit) as error:
            self.fail(plugin, error)
        else:
            self.plugins[plugin.key] = plugin

    def fail(self, plugin: Plugin, error: BaseException) -> None:
        """Take a plugin out again and remember why."""
        if self.manager.has_plugin(plugin.key):
            self.manager.unregister(name=plugin.key)
        details = "".join(traceback.format_exception(error))
        reason = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
        self.plugins[plugin.key] = Plugin(
            plugin.name, plugin.distribution, plugin.version, plugin.module, reason, details
        )


def load_plugins(files: Iterable[Path | str] = (), disabled: Iterable[str] | None = None) -> Plugins:
    """Load all installed plugins and the local `files`.

    `disabled` defaults to `RKD_DISABLE_PLUGINS`. Raises RkdError for a local file that does not exist, since the
    user asked for it by name; an installed plugin never raises.
    """
    if disabled is None:
        disabled = os.environ.get("RKD_DISABLE_PLUGINS", "").split(",")
    patterns = [pattern.strip() for pattern in disabled if pattern.strip()]
    plugins = Plugins()
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (_distribution(e)[0], e.name)):
        distribution, version = _distribution(entry)
        plugin = Plugin(entry.name, distribution, version, entry.value)
        if any(fnmatch(entry.name, p) or fnmatch(distribution, p) for p in patterns):
            plugins.plugins[plugin.key] = Plugin(entry.name, distribution, version, entry.value, disabled=True)
        else:
            plugins.add(plugin, entry.load)
    for path in {Path(file).resolve(): Path(file) for file in files}.values():  # each file once
        if not path.is_file():
            raise RkdError(f"there is no plugin file {path}")
        name, number = path.stem, 1
        while f"file/{name}" in plugins.plugins:  # another folder's file of the same name
            number += 1
            name = f"{path.stem}-{number}"
        plugins.add(Plugin(name, "file", str(path), str(path)), lambda path=path, name=name: _load_file(path, name))
    return plugins


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    if entry.dist is None:
        return "unknown", "?"
    # A half-removed distribution has no metadata any more.
    return entry.dist.name or "unknown", entry.dist.version or "?"


def _load_file(path: Path, name: str) -> ModuleType:
    name = f"rkd_local_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RkdError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

"""Loading plugins, one by one, so that a broken one is reported and stops nothing.

Plugins are entry points of the group `rkd`; each names a module with registration hooks. Local files come in only
when asked for. `RKD_DISABLE_PLUGINS=a,b` leaves out plugins by entry-point name or distribution (`*` and `?` work).
"""

import contextlib
import importlib.util
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from rkd.core.errors import RkdError
from rkd.storage.text import did_you_mean

from .hooks import RegistrationHooks

GROUP = "rkd"
UNKNOWN = "unknown"
PATIENCE = 5.0
"""Seconds after which a plugin that is still being imported is named."""


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
        self.seconds: dict[str, float] = {}
        """How long the import of each took."""

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins.values() if plugin.error]

    def add(self, plugin: Plugin, load: Callable[[], Any]) -> None:
        """Load and register one plugin; whatever goes wrong becomes its `error`."""
        started = time.perf_counter()
        with self.guarded(plugin):
            try:
                module = load()
            finally:
                self.seconds[plugin.key] = time.perf_counter() - started
            self._check_hooks(module)
            self.manager.register(module, name=plugin.key)
            self.manager.check_pending()
            self.plugins[plugin.key] = plugin

    def _check_hooks(self, module: Any) -> None:
        hooks = [name for name in vars(RegistrationHooks) if name.startswith("rkd_")]
        for name in dir(module):
            if name not in hooks and self.manager.parse_hookimpl_opts(module, name):
                raise RkdError(f"there is no hook {name!r}.{did_you_mean(name, hooks)} Hooks: {', '.join(hooks)}")

    @contextmanager
    def guarded(self, plugin: Plugin) -> Iterator[None]:
        """Inside, a plugin's code runs: what it raises takes the plugin out again, it is named if it takes long, and
        what it prints goes to stderr: stdout belongs to the one JSON object of `--json`."""
        waiting = threading.Timer(PATIENCE, _tell_of, [plugin])
        waiting.daemon = True
        waiting.start()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as error:  # also SystemExit, GeneratorExit
            self.fail(plugin, error)
        finally:
            waiting.cancel()

    def fail(self, plugin: Plugin, error: BaseException) -> None:
        """Take a plugin out again and remember why."""
        if self.manager.has_plugin(plugin.key):
            self.manager.unregister(name=plugin.key)
        details = "".join(traceback.format_exception(error))
        kind = "" if isinstance(error, RkdError) else f"{type(error).__name__}: "
        place = raised_at(error)
        reason = f"{kind}{error}".strip().replace("\n", " ") + (f" ({place})" if place else "")
        self.plugins[plugin.key] = replace(plugin, error=reason, details=details)


def raised_at(error: BaseException) -> str:
    """`FILE, line N`: the innermost place in a plugin's code that an error passed, else where it was raised; "" for
    none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    package, library = Path(__file__).parents[1], Path(traceback.__file__).parent

    def in_plugin(file: Path) -> bool:
        if {"site-packages", "dist-packages"} & set(file.parts):
            return not {"torch", "pluggy", "click"} & set(file.parts)
        if file.is_relative_to(package):
            return file.is_relative_to(package / "plugins")
        return not file.is_relative_to(library)

    chosen = [frame for frame in frames if in_plugin(Path(frame.filename))] or frames
    return f"{chosen[-1].filename}, line {chosen[-1].lineno}" if chosen else ""


def load_plugins(files: Iterable[Path | str] = (), disabled: Iterable[str] | None = None) -> Plugins:
    """Load all installed plugins and the local `files`.

    `disabled` defaults to `RKD_DISABLE_PLUGINS`. Raises RkdError for a local file that does not exist, since the
    user asked for it by name; an installed plugin never raises.
    """
    if disabled is None:
        disabled = os.environ.get("RKD_DISABLE_PLUGINS", "").split(",")
    patterns = [pattern.strip() for pattern in disabled if pattern.strip()]
    plugins = Plugins()
    for (distribution, version), entry in installed(plugins):
        plugin = Plugin(entry.name, distribution, version, entry.value)
        if any(fnmatch(entry.name, p) or fnmatch(distribution, p) for p in patterns):
            plugins.plugins[plugin.key] = replace(plugin, disabled=True)
        else:
            plugins.add(plugin, entry.load)
    for path in {Path(file).resolve(): Path(file) for file in files}.values():  # each file once
        if not path.is_file():
            raise RkdError(f"there is no plugin file {path}")
        name, number = path.stem, 1
        while f"file/{name}" in plugins.plugins:  # another folder's file of the same name
            number += 1
            name = f"{path.stem}-{number}"
        plugins.add(Plugin(name, "file", str(path), str(path)), partial(_load_file, path, name))
    return plugins


def installed(plugins: Plugins) -> list[tuple[tuple[str, str], EntryPoint]]:
    """All entry points with their distribution and its version, in order. One distribution whose files cannot be read
    is reported as a broken plugin, and the others are asked."""
    found: dict[tuple[str, str], list[EntryPoint]] = {}
    for distribution in distributions():
        try:
            entries = distribution.entry_points.select(group=GROUP)
        except Exception as error:  # not UTF-8, not of its form
            name, version = _identity(distribution)
            plugins.fail(Plugin("entry_points.txt", name, version, str(distribution.locate_file(""))), error)
            continue
        if not entries:
            continue  # before it is asked for its name: that parses a file of some hundred lines
        name, version = _identity(distribution)
        if name == UNKNOWN or all(name != known for known, _ in found):  # else: another copy of it, later on the path
            found.setdefault((name, version), []).extend(entries)
    pairs = [(identity, entry) for identity, entries in found.items() for entry in entries]
    return sorted(pairs, key=lambda pair: (pair[0][0], pair[1].name))


def _identity(distribution: Distribution) -> tuple[str, str]:
    try:
        return distribution.name or UNKNOWN, distribution.version or "?"
    except Exception:  # a half-removed distribution has no metadata any more, a damaged one none that can be read
        return UNKNOWN, "?"


def _tell_of(plugin: Plugin) -> None:
    if plugin.module.startswith("rkd.plugins."):  # the first of rkd's own waits for torch
        return
    print(
        f"still waiting for the plugin {plugin.key} ({plugin.module}), or for what it imports first, such as torch; "
        f"RKD_DISABLE_PLUGINS={plugin.name} leaves the plugin out",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _load_file(path: Path, name: str) -> ModuleType:
    name = f"rkd_local_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise RkdError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    # Not by exec_module: it may take what it has kept of a file that was edited within the same second.
    exec(spec.loader.source_to_code(path.read_bytes(), str(path)), vars(module))
    return module

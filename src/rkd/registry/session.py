"""What a process knows of components: the installed plugins, local files, and what Python code registered by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rkd.core.errors import RkdError
from rkd.storage.text import did_you_mean

from .catalog import OBJECT, Catalog, load_catalog
from .hooks import KINDS


class Session:
    """The components that are known by name in one process. `rkd` itself holds one, which `rkd.register` adds to."""

    def __init__(self) -> None:
        self.registered: dict[str, dict[str, Any]] = {}
        """{kind: {name: component}}"""
        self._installed: Catalog | None = None

    def register(self, kind: str, name: str, component: Any) -> None:
        """Raises RkdError for a kind that is none, and a name that a plugin has; a component of this session yields to
        another of its name."""
        if kind not in KINDS:
            raise RkdError(f"there is no kind {kind!r}.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}")
        if isinstance(name, str) and name.startswith(OBJECT):
            raise RkdError(f"the name {name!r}: what begins with {OBJECT} are objects that a run was given")
        self.catalog().extended({kind: {name: component}})
        self.registered.setdefault(kind, {})[name] = component

    def forget(self) -> None:
        """Nothing is registered any more."""
        self.registered.clear()

    def catalog(self, files: Sequence[str | Path] = ()) -> Catalog:
        """The installed plugins, loaded once, what is registered, and the plugins of local `files`, read anew each
        time: a notebook's author changes them."""
        if self._installed is None:
            self._installed = load_catalog()
        if not files:
            return self._installed.extended(self.registered)
        catalog = load_catalog(files)
        if broken := [plugin for plugin in catalog.plugins.broken if plugin.distribution == "file"]:
            raise RkdError(f"the plugin file {broken[0].module} could not be loaded: {broken[0].error}")
        return catalog.extended(self.registered)

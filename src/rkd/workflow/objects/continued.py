"""Going on with a run from Python: what it was made of is given again, and nothing else is changed unasked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rkd.core.errors import ConfigError, RkdError
from rkd.registry.catalog import OBJECT, Catalog
from rkd.registry.recipes import Table, merge, read_recipe
from rkd.storage.runfolder import RunFolder

from ..manifest import earlier_manifest
from ..resolve import resolve
from ..resume import SHOWN, changes, check_config
from .parts import SOURCE

DIGITS_TELL = {
    "model": " (the digits tell the names and shapes of its weights)",
    "teacher": " (the digits tell its weights)",
    "dataset": " (the digits tell its images and labels)",
}


def continued(path: Path, given: Table, catalog: Catalog, accept_changes: bool) -> Table:
    """The configuration with which a run goes on: its own, in which `given` changes nothing unless that is accepted.

    Raises RkdError for objects that it was made of and that are missing now, and for changes.
    """
    folder = RunFolder.open(path)
    check_config(folder, accept_changes)
    _check_objects(folder, catalog)
    own = read_recipe(folder.config)
    if not given:
        return own
    table = merge(own, given)
    if not accept_changes:
        before, after = (resolve(each, catalog).config.model_dump(by_alias=True) for each in (own, table))
        if found := changes(before, after):
            raise RkdError(
                f"{path} goes on as it began, and asked for is another run: {', '.join(found[:SHOWN])}. Leave that "
                "out, or go on with it: accept_changes=True"
            )
    return table


def _check_objects(folder: RunFolder, catalog: Catalog) -> None:
    parts: Any = earlier_manifest(folder).get("objects", {})
    problems = []
    for setting, part in parts.items():
        if not isinstance(part, Mapping):
            continue
        kind, name = str(part.get("kind")), str(part.get("name"))
        known = catalog.entries.get(kind, {})
        if kind == "teacher":
            sources = (entry.component.value for entry in known.get(SOURCE, []))
            here = [f"{OBJECT}{module}" for source in sources for module in source.modules]
        else:
            here = [other for other in known if other.startswith(OBJECT)] + [name] * (name in known)
        if name not in here:
            said = f"given is {', '.join(here)}{DIGITS_TELL.get(kind, '')}" if here else "give it again"
            problems.append(f"{setting}: this run was made with the {kind} {name} of Python code; {said}")
    if problems:
        raise ConfigError(problems)

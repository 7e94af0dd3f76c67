"""`rkd cite`: the BibTeX of a component, or of everything that a run used."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..shared import RUNS, App, pass_app, plugin_option

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog, Entry
    from rkd.storage.runfolder import RunFolder


@click.command("cite", short_help="Print the BibTeX of a component or a run.")
@click.argument("name", metavar="RUN|NAME", type=click.Path())
@plugin_option
@pass_app
def cite(app: App, name: str) -> None:
    """Print the BibTeX of a component, or of all parts of a run."""
    from ..about import find

    catalog = app.catalog()
    files = ("config.toml", "evaluation.json")
    places = (Path(name), Path(RUNS) / name)
    folder = next((path for path in places if any((path / file).is_file() for file in files)), None)
    entries = list(parts_of(folder, catalog, app)) if folder else find(catalog, name)
    texts: dict[str, str] = {}
    silent = []
    for entry in entries:
        found = citations(entry)
        if not found:
            silent.append(f"{entry.kind} {entry.name}")
        for key, text in found.items():
            texts.setdefault(key, text)
    if texts:
        app.terminal.result("\n\n".join(texts.values()))
    if silent:
        app.terminal.message(f"no citation: {', '.join(silent)}")


def citations(entry: Entry) -> dict[str, str]:
    """The entries that a component's module cites, by their keys, or where it has none the ones of its package."""
    from ..about import component_of

    module = component_of(entry).__module__
    places = (sys.modules.get(name) for name in (module, module.rpartition(".")[0]))
    return next((found for place in places if (found := bibtex(getattr(place, "__doc__", None) or ""))), {})


def bibtex(text: str) -> dict[str, str]:
    """The entries in ```bibtex blocks, by their keys."""
    found = {}
    for block in re.findall(r"```bibtex\n(.*?)```", text, re.DOTALL):
        for entry in re.split(r"(?m)^(?=@)", block):
            if match := re.match(r"@\w+\s*\{\s*([^,\s]+)\s*,", entry):
                found[match.group(1)] = entry.strip()
    return found


def parts_of(folder: Path, catalog: Catalog, app: App) -> Iterable[Entry]:
    """Every component that a run's configuration, or a saved evaluation, names. One that is not installed any more is
    told, not an error."""
    from rkd.core.errors import RkdError
    from rkd.registry.config import parse, read_recipe
    from rkd.storage.runfolder import RunFolder

    opened = RunFolder(folder)
    if opened.is_evaluation:
        names = _names_evaluated(opened)
    else:
        config = read_recipe(opened.config)
        parse(config)  # names are where they belong from here on
        names = _names(config)
    for kind, name in dict.fromkeys(names):
        try:
            yield catalog.find(kind, name)
        except RkdError as error:
            app.terminal.warning(str(error))


def _names_evaluated(folder: RunFolder) -> Iterable[tuple[str, str]]:
    """Model, data set and attacks of a saved evaluation. Raises ConfigError for one that `rkd eval` did not write."""
    from rkd.core.errors import ConfigError

    found = folder.read_json(folder.evaluation)
    found = found if isinstance(found, Mapping) else {}
    names, attacks = (found.get("model"), found.get("data")), found.get("attacks")
    if not all(isinstance(name, str) for name in names) or not isinstance(attacks, Mapping):
        raise ConfigError(f"{folder.evaluation} does not say what was evaluated, as those of `rkd eval --save` do")
    yield from zip(("model", "dataset"), names, strict=True)
    yield from (("attack", name) for name in attacks)


def _names(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for kind in ("loss", "attack", "objective"):
        if kind in config:
            yield kind, config[kind]["name"]
    for attack in config.get("attacks", {}).values():
        yield "attack", attack["name"]
    for kind in ("scheduler", "augment", "extension"):
        yield from ((kind, name) for name, options in config.get(f"{kind}s", {}).items() if options is not False)
    student = config.get("student", {})
    yield "model", student.get("model", "small-cnn")
    yield from (("student", name) for name, options in student.get("conversions", {}).items() if options is not False)
    for teacher in config.get("teachers", []):
        reference = teacher["reference"]
        if "@" in reference or not Path(reference).is_dir():
            yield "model", reference.partition("@")[0]
    yield "dataset", config.get("data", {}).get("name", "digits")
    yield from (("attack", name) for name in config.get("evaluate", {}).get("attacks", []))

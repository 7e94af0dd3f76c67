"""`rkd cite`: the BibTeX of a component, or of everything that a run used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rkd.core.errors import RkdError
from rkd.registry.hooks import KINDS

from ...complete import values
from ...options import App, pass_app, plugin_option

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog, Entry
    from rkd.workflow.folders import RunFolder


@click.command("cite", short_help="Print the BibTeX of a component or a run.")
@click.argument("name", metavar="RUN|NAME", type=click.Path(), shell_complete=values(*KINDS, runs=True))
@plugin_option
@pass_app
def cite(app: App, name: str) -> None:
    """Print the BibTeX of a component, or of all parts of a run."""
    from rkd.workflow.folders import RUNS, RunFolder

    catalog = app.catalog()
    files = ("config.toml", "evaluation.json")
    places = (Path(name), Path(RUNS) / name)
    folder = next((path for path in places if any((path / file).is_file() for file in files)), None)
    if folder:
        entries = components(RunFolder(folder), catalog, app.terminal.warning)
    elif "+" in name:  # losses side by side
        from rkd.registry.losses import names_of

        entries = [catalog.find("loss", part) for part in names_of(name)]
    else:
        entries = catalog.find_all(name)
    texts: dict[str, str] = {}
    for entry in entries:
        texts |= entry.citations()
    if texts:
        app.terminal.result("\n\n".join(texts.values()))
    if uncited := [f"{entry.kind} {entry.name}" for entry in entries if not entry.citations()]:
        app.terminal.message(f"no citation: {', '.join(uncited)}")


def components(folder: RunFolder, catalog: Catalog, warn: Callable[[str], None]) -> list[Entry]:
    """The components of a run or a saved evaluation; `warn` is told of those that are not installed any more. (Objects
    of Python code were never installed, and have nothing to cite.)"""
    from rkd.registry.catalog import OBJECT
    from rkd.workflow.folders import components_of

    entries = []
    for kind, name in components_of(folder):
        if name.startswith(OBJECT):
            continue
        try:
            entries.append(catalog.find(kind, name))
        except RkdError as error:
            warn(str(error))
    return entries

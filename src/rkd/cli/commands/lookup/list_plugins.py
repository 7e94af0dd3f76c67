"""`rkd list-plugins`: what is installed, what is broken, what is disabled."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import click

from rkd.core.errors import UnknownName
from rkd.registry.hooks import KINDS
from rkd.storage.text import did_you_mean

from ...options import App, json_option, pass_app, plugin_option

if TYPE_CHECKING:
    from rkd.registry.catalog import Entry

    from ...terminal import Terminal

OWN = "rkd-toolkit"
"""The distribution of the built-in plugins."""


@click.command("list-plugins", short_help="List all components and plugins.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="One kind of component alone.")
@click.option("--from", "origin", metavar="DIST", help="The components of one distribution alone; `file` for those of "
              "--plugin.")  # fmt: skip
@json_option
@plugin_option
@pass_app
def list_plugins(app: App, kind: str | None, origin: str | None) -> None:
    """List all components by kind, those of other distributions first, and the plugins that could not be loaded."""
    with app.terminal.guarded():
        catalog = app.catalog(broken_files=True)
    plugins = [plugin for plugin in catalog.plugins.plugins.values() if origin in (None, plugin.distribution)]
    if not plugins:
        known = sorted({plugin.distribution for plugin in catalog.plugins.plugins.values()})
        raise UnknownName(
            f"no plugin is from {origin!r}.{did_you_mean(str(origin), known)} Distributions: {', '.join(known)}"
        )
    entries = [
        entry for entry in catalog.all()
        if kind in (None, entry.kind) and origin in (None, entry.plugin.distribution)
    ]  # fmt: skip
    disabled = [plugin for plugin in plugins if plugin.disabled]
    broken = [plugin for plugin in plugins if plugin.error]
    terminal = app.terminal
    if app.json:
        terminal.json({
            "plugins": [
                {"kind": e.kind, "name": e.name, "summary": e.summary, "distribution": e.plugin.distribution,
                 "version": e.plugin.version, "plugin": e.plugin.name}
                for e in entries
            ],
            "broken": [
                {"name": p.name, "distribution": p.distribution, "version": p.version, "error": p.error} for p in broken
            ],
            "disabled": [{"name": p.name, "distribution": p.distribution, "version": p.version} for p in disabled],
        })  # fmt: skip
        return
    _show(entries, terminal)
    if disabled:
        terminal.result()
        rows = [[p.name, f"{p.distribution} {p.version}"] for p in disabled]
        terminal.table(["disabled", ("provided by", "wrap")], rows)
    if broken:
        terminal.result()
        rows = [[p.name, f"{p.distribution} {p.version}", p.error or ""] for p in broken]
        terminal.table(["broken", "provided by", ("why", "wrap")], rows)
    terminal.message("\n`rkd info NAME` tells more about one of them", hint=True)


def _show(entries: Iterable[Entry], terminal: Terminal) -> None:
    """One line a component, under headings of kind and distribution; the built-in ones last."""

    def group(entry: Entry) -> tuple[bool, str, str]:
        return entry.plugin.distribution == OWN, f"{entry.plugin.distribution} {entry.plugin.version}", entry.kind

    kinds = list(KINDS)
    ordered = sorted(entries, key=lambda e: (*group(e)[:2], kinds.index(e.kind), e.name))
    for number, ((own, origin, kind), members) in enumerate(groupby(ordered, group)):
        if number:
            terminal.result()
        terminal.result(kind if own else f"{kind} from {origin}", "bold")
        listed = list(members)
        longest = max(len(entry.name) for entry in listed)
        for entry in listed:
            room = terminal.out.width - longest - 4
            about = textwrap.shorten(entry.summary, room, placeholder=" ...") if room >= 12 else ""
            terminal.result(f"  {entry.name:{longest}}  {about}".rstrip())

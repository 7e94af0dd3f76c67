"""`rkd list-plugins`: what is installed, what is broken, what is disabled."""

from __future__ import annotations

import click

from rkd.registry.hooks import KINDS

from ..options import App, json_option, pass_app, plugin_option


@click.command("list-plugins", short_help="List all components and plugins.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="One kind of component alone.")
@json_option
@plugin_option
@pass_app
def list_plugins(app: App, kind: str | None) -> None:
    """List all components with who provides them, and the plugins that could not be loaded."""
    with app.terminal.guarded():
        catalog = app.catalog(broken_files=True)
    entries = [entry for entry in catalog.all() if kind in (None, entry.kind)]
    disabled = [plugin for plugin in catalog.plugins.plugins.values() if plugin.disabled]
    broken = catalog.plugins.broken
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
    rows = [[e.kind, e.name, f"{e.plugin.distribution} {e.plugin.version}", e.summary] for e in entries]
    terminal.table(["kind", "name", "provided by", ("what it is", "wrap")], rows)
    if disabled:
        terminal.result()
        rows = [[p.name, f"{p.distribution} {p.version}"] for p in disabled]
        terminal.table(["disabled", ("provided by", "wrap")], rows)
    if broken:
        terminal.result()
        rows = [[p.name, f"{p.distribution} {p.version}", p.error or ""] for p in broken]
        terminal.table(["broken", "provided by", ("why", "wrap")], rows)
    terminal.message("\n`rkd info NAME` tells more about one of them", hint=True)

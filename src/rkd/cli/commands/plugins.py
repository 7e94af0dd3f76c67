"""`rkd plugins new`, `doctor` and `test`: for those who write plugins, and those whose plugins make trouble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rkd.core.errors import RkdError, UnknownName
from rkd.registry.hooks import KINDS
from rkd.storage.text import did_you_mean

from ..options import App, json_option, pass_app, plugin_option

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog
    from rkd.testing.kit import Verdict


@click.group("plugins", short_help="Begin a plugin, test it, find out what is wrong with one.")
def plugins() -> None:
    """Begin a plugin, test it, find out what is wrong with one."""


@plugins.command("new", short_help="Write the package of a new plugin.")
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(list(KINDS)), help="What it provides.")
@click.option("--out", metavar="DIR", default=".", show_default=True, help="Where the package's folder goes.")
@click.option("--licence", "--license", metavar="SPDX", default="MIT", show_default=True, help="Its licence.")
@json_option
@pass_app
def new(app: App, name: str, kind: str, out: str, licence: str) -> None:
    """Write a package rkd-NAME with one plugin that works, its test, pyproject.toml, CI and README."""
    from rkd.storage.text import command
    from rkd.workflow.authoring.new import new_plugin

    folder = new_plugin(name, kind, Path(out), licence)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    if app.json:
        app.terminal.json({"folder": str(folder), "files": files})
        return
    app.terminal.result(f"wrote {folder}: {', '.join(files)}")
    module = folder / f"{folder.name.replace('-', '_')}.py"
    app.terminal.message(f"try it as it is:  {command('plugins', 'test', module)}")
    app.terminal.message(f"install and test: pip install -e {folder} && pytest {folder}")


@plugins.command("test", short_help="Check what a plugin provides.")
@click.argument("plugin", metavar="DIST|FILE")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Components of one kind alone.")
@json_option
@pass_app
def test(app: App, plugin: str, kind: str | None) -> None:
    """Check every component of a distribution, or of a plugin file, with the checks of rkd.testing.

    Exit code 2 if one of them breaks a promise.
    """
    app.load_torch()
    from rkd.testing.kit import check_plugin

    file = Path(plugin)
    if file.suffix == ".py" or file.is_file():
        app.files = [*app.files, plugin]
        catalog, distribution = app.catalog(), "file"
    else:
        catalog, distribution = app.catalog(), plugin
    _check_known(catalog, plugin, distribution)
    verdicts: list[Verdict] = []
    with app.terminal.guarded():
        for verdict in check_plugin(catalog, distribution, kind):
            verdicts.append(verdict)
            if not app.json:
                mark = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}[verdict.status]
                reason = f": {verdict.reason}" if verdict.reason else ""
                app.terminal.result(f"{mark:7} {verdict.entry.kind} {verdict.entry.name}{reason}")
    broken = [verdict for verdict in verdicts if verdict.status == "failed"]
    if app.json:
        app.terminal.json([
            {"kind": v.entry.kind, "name": v.entry.name, "status": v.status, "reason": v.reason} for v in verdicts
        ])  # fmt: skip
    if not verdicts:
        raise RkdError(f"{plugin} provides no component" + (f" of the kind {kind}" if kind else ""))
    if broken:
        raise RkdError(f"{len(broken)} of {len(verdicts)} components break a promise that rkd relies on")


def _check_known(catalog: Catalog, asked: str, distribution: str) -> None:
    """Raise RkdError for a distribution without plugins, or with one that could not be loaded."""
    mine = [plugin for plugin in catalog.plugins.plugins.values() if plugin.distribution == distribution]
    if not mine:
        known = sorted({plugin.distribution for plugin in catalog.plugins.plugins.values()})
        raise UnknownName(
            f"no plugin is from {asked!r}.{did_you_mean(asked, known)} Distributions: {', '.join(known)}. Or give "
            "a file"
        )
    for plugin in mine:
        if plugin.error:
            raise RkdError(f"{plugin.key} could not be loaded: {plugin.error}")


@plugins.command("doctor", short_help="What is wrong with the installed plugins.")
@click.option("--all", "everything", is_flag=True, help="Also the built-in plugins.")
@json_option
@plugin_option
@pass_app
def doctor(app: App, everything: bool) -> None:
    """The plugins of others: what they register, how long they take to import, and what is wrong with them.

    Looked for are plugins that cannot be loaded or register nothing, names that two of them provide, versions that do
    not go together, slow imports, and imports of what is private in rkd. Exit code 2 if something is wrong.
    """
    app.load_torch()
    import rkd.plugin  # noqa: F401 - its time is none of the plugins'
    from rkd.workflow.authoring.doctor import OWN, diagnose

    with app.terminal.guarded():
        found = diagnose(app.catalog(broken_files=True))
    shown = [one for one in found if everything or one.problems or one.plugin.distribution != OWN]
    if app.json:
        app.terminal.json([
            {"plugin": one.plugin.key, "version": one.plugin.version, "module": one.plugin.module,
             "disabled": one.plugin.disabled, "seconds": round(one.seconds, 3), "components": one.hooks,
             "problems": one.problems}
            for one in shown
        ])  # fmt: skip
    elif shown:
        app.terminal.table(
            ["plugin", "version", ("import", "right"), ("components", "wrap")],
            [[one.plugin.key, one.plugin.version, f"{one.seconds:.2f} s", _components(one.hooks, one.plugin.disabled)]
             for one in shown],
        )  # fmt: skip
        for one in shown:
            for problem in one.problems:
                app.terminal.result(f"{one.plugin.key}: {problem}")
    own = sum(one.plugin.distribution == OWN for one in found)
    sick = [one for one in found if one.problems]
    if sick:
        raise RkdError(f"{len(sick)} of {len(found)} plugins need attention")
    app.terminal.message(f"{len(found) - own} plugins of others and {own} built-in ones: nothing is wrong")


def _components(hooks: dict[str, list[str]], disabled: bool) -> str:
    if disabled:
        return "left out by RKD_DISABLE_PLUGINS"
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in hooks.items()) or "none"

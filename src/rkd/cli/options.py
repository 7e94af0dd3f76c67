"""Options of several commands, and the invocation that they fill: `App`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from rkd.core.errors import RkdError

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog
    from rkd.workflow.plan import Ranks

    from .terminal import Terminal


@dataclass
class App:
    """One invocation of `rkd`."""

    words: list[str] = field(default_factory=list)
    """The words after `rkd`."""
    files: list[str] = field(default_factory=list)
    debug: bool = False
    json: bool = False
    verbosity: int = 0
    ranks: Ranks | None = None
    """The processes that torchrun started, once they have met."""

    @cached_property
    def terminal(self) -> Terminal:
        from .terminal import Terminal

        return Terminal(self.json, self.verbosity)

    @property
    def plugin_words(self) -> list[str]:
        """The local plugin files as options, for a command that needs the same ones."""
        return [word for file in self.files for word in ("--plugin", file)]

    def load_torch(self) -> None:
        """Import torch, which takes seconds: not before it is said."""
        if "torch" not in sys.modules:
            self.terminal.doing("loading torch and the plugins", at_once=True)
            try:
                import rkd.workflow.plan  # noqa: F401
            finally:
                self.terminal.still()

    def meet(self) -> Ranks:
        """Meet the other processes, if torchrun started any. All but the first are silent from then on."""
        self.load_torch()
        from rkd.workflow.plan import join

        self.ranks = join()
        if not self.ranks.first:
            self.terminal.silence()
        return self.ranks

    def leave(self) -> None:
        """Part from the other processes: the work is done. Not after an error, when the others may not come."""
        from rkd.workflow.plan import leave

        if self.ranks is not None:
            leave(self.ranks)

    def catalog(self, broken_files: bool = False) -> Catalog:
        """Everything that the plugins provide. A local file that does not load is an error: it was asked for."""
        self.load_torch()
        from rkd.registry.catalog import load_catalog

        self.terminal.doing("loading the plugins")
        try:
            catalog = load_catalog(dict.fromkeys(self.files))
        finally:
            self.terminal.still()
        for plugin in catalog.plugins.broken:
            if plugin.distribution == "file" and not broken_files:
                raise RkdError(f"the plugin file {plugin.module} could not be loaded: {plugin.error}")
            if plugin.distribution != "file":
                self.terminal.detail(f"the plugin {plugin.key} {plugin.version} could not be loaded: {plugin.error}")
        return catalog

    @property
    def speaks(self) -> bool:
        """Whether this is the process that shows results."""
        return self.ranks is None or self.ranks.first


class Grouped(click.Command):
    """A command whose help shows its options in groups: `groups` holds their names by heading."""

    def __init__(self, *arguments: Any, groups: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {p.name: record for p in options if (record := p.get_help_record(ctx))}
        for heading, names in self.groups.items():
            with formatter.section(heading):
                formatter.write_dl([records.pop(name) for name in names.split() if name in records])
        with formatter.section("Everything else"):
            formatter.write_dl(list(records.values()))


pass_app = click.make_pass_decorator(App, ensure=True)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        app = context.ensure_object(App)
        if name == "files":
            app.files.extend(value)
        elif value:
            setattr(app, name, value)

    return callback


plugin_option = click.option(
    "--plugin", multiple=True, metavar="FILE.py", type=click.Path(), expose_value=False, callback=_remember("files"),
    help="Load a local plugin file; repeatable.",
)  # fmt: skip

out_option = click.option(
    "--out", metavar="DIR", default="runs", show_default=True, help="Where runs named without a path are."
)

json_option = click.option(
    "--json", is_flag=True, expose_value=False, is_eager=True, callback=_remember("json"),
    help="One JSON object on stdout, everything else on stderr.",
)  # fmt: skip


def split_attacks(option: str, texts: tuple[str, ...]) -> list[str] | None:
    """The attacks of a repeatable option, each once: `("fgsm,cw", "pgd")` to `["fgsm", "cw", "pgd"]`.

    [] for `none`, None where it was not given. Raises RkdError for `none` among others.
    """
    names = list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
    if texts and not names:
        raise RkdError(f"{option} names no attack; for clean accuracy alone type {option} none")
    if "none" in names and len(names) > 1:
        others = ", ".join(name for name in names if name != "none")
        raise RkdError(
            f"{option} none stands alone: it asks for clean accuracy and no attack; leave out none, or {others}"
        )
    return None if not names else [] if names == ["none"] else names


def _verbosity(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(App).verbosity = -1 if parameter.name == "quiet" else 1


def verbosity_options(command: Any) -> Any:
    """-q and -v."""
    quiet = click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_verbosity,
                         help="Results, warnings and errors alone.")  # fmt: skip
    loud = click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_verbosity,
                        help="More about what goes on.")  # fmt: skip
    return quiet(loud(command))

"""What several commands share: options, and the catalog with the local plugin files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rkd.core.errors import RkdError, did_you_mean

if TYPE_CHECKING:
    from rkd.distributed.ranks import Ranks
    from rkd.registry.catalog import Catalog

    from .terminal import Terminal

RUNS = "runs"
"""Where runs go unless told."""


@dataclass
class App:
    """One invocation of `rkd`."""

    words: list[str] = field(default_factory=list)
    """What came behind `rkd`."""
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

    def meet(self) -> Ranks:
        """Meet the other processes, if torchrun started any. All but the first are silent from then on."""
        from rkd.distributed.ranks import join

        self.ranks = join()
        if not self.ranks.first:
            self.terminal.silence()
        return self.ranks

    def catalog(self, broken_files: bool = False) -> Catalog:
        """Everything that the plugins provide. A local file that does not load is an error: it was asked for."""
        from rkd.registry.catalog import load_catalog

        catalog = load_catalog(dict.fromkeys(self.files))
        for plugin in catalog.plugins.broken:
            if plugin.distribution == "file" and not broken_files:
                raise RkdError(f"the plugin file {plugin.module} could not be loaded: {plugin.error}")
            if plugin.distribution != "file":
                self.terminal.detail(f"the plugin {plugin.key} {plugin.version} could not be loaded: {plugin.error}")
        return catalog


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

json_option = click.option(
    "--json", is_flag=True, expose_value=False, is_eager=True, callback=_remember("json"),
    help="One JSON object on stdout, everything else on stderr.",
)  # fmt: skip


def find_run(text: str, out: str = RUNS, evaluations: bool = False) -> Path:
    """A run by its folder, or by its name under `out`; with `evaluations` also what `rkd eval --save` wrote.

    Raises RkdError.
    """
    places = (Path(text), Path(out) / text)
    names = ("config.toml", "evaluation.json") if evaluations else ("config.toml",)
    for path in places:
        if any((path / name).is_file() for name in names):
            return path
    for path in places:
        if (path / "evaluation.json").is_file():
            raise RkdError(
                f"{path} is not a run's folder: it is an evaluation saved by `rkd eval`, and holds no net. "
                f"`rkd report {path}` shows it, `rkd compare` puts it beside others"
            )
    known = list(dict.fromkeys(path.parent.name for name in names for path in sorted(Path(out).glob(f"*/{name}"))))
    there = f" Runs in {out}: {', '.join(known)}." if known else ""
    raise RkdError(f"{text} is not a run's folder, nor a name under {out}.{did_you_mean(text, known)}{there}")


def split_names(texts: tuple[str, ...]) -> list[str]:
    """`("fgsm,cw", "pgd")` to `["fgsm", "cw", "pgd"]`, each once."""
    return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))


def split_attacks(option: str, texts: tuple[str, ...]) -> list[str] | None:
    """The attacks of an option: [] for `none`, None where it was not given. Raises RkdError for `none` among others."""
    names = split_names(texts)
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

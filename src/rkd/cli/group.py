"""The group of commands: asks plugins for commands it does not know, and turns errors into messages and exit codes."""

import errno
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import click

from rkd.core.errors import ConfigError, RkdError, UnknownName
from rkd.storage.text import did_you_mean

from .options import App
from .signals import Terminated

MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG}
"""Errors of the operating system that the user can mend: no traceback for these."""


TURN_DOWN = (
    "in a training --auto-batch keeps the batch and computes it in as few parts as fit (--grad-accumulation N: in N);",
    "also --precision bf16, a smaller student or teacher; in an evaluation of a run: --set evaluate.batch_size=N",
)
"""What to do about memory that runs out."""


class Commands(click.Group):
    """Exit codes: 0 done, 1 unexpected error, 2 a mistake that the user can mend, 130 interrupted, 143 terminated."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        try:
            return super().main(*arguments, **settings)
        except KeyboardInterrupt:  # while the first one was being told of
            sys.exit(130)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        # Completion stays without plugins, and so without torch.
        if known is not None or ctx.resilient_parsing or cmd_name.startswith("-"):
            return known
        app = ctx.ensure_object(App)
        owners, broken = _plugin_commands(app)
        commands = owners.get(cmd_name, {})
        if len(commands) > 1:
            both = " and ".join(commands)
            raise RkdError(f"two plugins provide the command {cmd_name!r}: {both}; RKD_DISABLE_PLUGINS blocks one")
        if not commands:
            names = [*self.commands, *owners]
            near = did_you_mean(cmd_name, names)
            raise UnknownName(f"there is no command {cmd_name!r}.{near} Commands: {', '.join(names)}.{broken}")
        return next(iter(commands.values()))

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        words = list(args)
        context = super().make_context(info_name, args, *rest, **extra)
        context.ensure_object(App).words = words
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_words(ctx.ensure_object(App).words)
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            try:
                code = report(error, ctx.ensure_object(App))
            except KeyboardInterrupt:  # impatient
                code = 130
        ctx.exit(code)


def _check_words(words: Sequence[str]) -> None:
    """Raise RkdError for an empty value: where a variable of the shell is unset, the default is not what was meant."""
    for before, word in zip(("", *words), words, strict=False):
        if (not word and before not in ("--attack", "--evaluate")) or re.fullmatch(r"--[\w-]+=", word):
            raise RkdError(
                f"{(word or before or 'an argument').rstrip('=')}: is empty (is a variable of the shell unset?)"
            )


def report(error: BaseException, app: App) -> int:
    """Tell of an error. Returns the exit code. Of several processes the first that fails speaks: where one dies, the
    others only lose their connection to it."""
    terminal = app.terminal
    if app.ranks is not None:
        terminal.silence(not app.ranks.fails_first())
    text = "".join(traceback.format_exception(error))
    if app.debug:
        terminal.message(text, always=True)
    notes = getattr(error, "__notes__", [])
    if isinstance(error, Terminated):
        terminal.error("terminated", notes=notes)
        return 143
    if isinstance(error, KeyboardInterrupt):
        terminal.error("interrupted", notes=notes)
        return 130
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        terminal.error(f"{len(error.problems)} problems:", error.problems, notes)
        return 2
    if isinstance(error, RkdError):
        terminal.error(str(error), notes=notes)
        return 2
    if isinstance(error, OSError) and error.errno in MENDABLE:
        terminal.error(": ".join(filter(None, (error.strerror, error.filename and str(error.filename)))), notes=notes)
        return 2
    if app.ranks is not None and app.ranks.lost(error):
        terminal.error("another process of this run has died (killed, or out of memory?), and this one needs it",
                       notes=notes)  # fmt: skip
        return 2
    if _out_of_memory(error):
        terminal.error(f"out of memory ({_first_line(error)}); try a smaller --batch-size", notes=[*TURN_DOWN, *notes])
        return 2
    terminal.error(
        f"unexpected {type(error).__name__}: {_first_line(error)}", notes=[*_place(error), *notes, *_keep(text, app)]
    )
    return 1


def _out_of_memory(error: BaseException) -> bool:
    # By name: torch is not imported for the sake of a message. The words are those of torch's allocator on a CPU.
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _place(error: BaseException) -> list[str]:
    from rkd.registry.plugins import raised_at

    place = raised_at(error)
    return [f"raised in {place}"] if place else []


def _keep(text: str, app: App) -> list[str]:
    words = "this is a bug, in rkd or in a plugin"
    if app.debug:
        return [words]
    try:
        number, path = tempfile.mkstemp(".txt", "rkd-error-")
        with open(number, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return [f"{words}; `rkd --debug ...` shows where"]
    return [f"{words}; {path} says where (`rkd --debug ...` shows it)"]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or "without a message"


def _plugin_commands(app: App) -> tuple[Mapping[str, Mapping[str, click.Command]], str]:
    """{name: {plugin: command}}, and words about plugins that could not be loaded.

    Plugins add to a group of their own: none can take the place of a command of rkd, or of another plugin.
    """
    plugins = app.catalog().plugins
    owners: dict[str, dict[str, click.Command]] = {}
    for hook in plugins.manager.hook.rkd_commands.get_hookimpls():
        group = click.Group()
        with plugins.guarded(plugins.plugins[hook.plugin_name]):
            hook.function(*[group][: len(hook.argnames)])
        for name, command in group.commands.items():
            owners.setdefault(name, {})[hook.plugin_name] = command
    broken = ", ".join(plugin.key for plugin in plugins.broken)
    return owners, f" Plugins that could not be loaded: {broken}; `rkd list-plugins` says why." if broken else ""

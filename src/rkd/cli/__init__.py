"""The command line. One command, one file; torch, rich and the plugins are imported inside the commands, so that
`rkd --help` and shell completion answer at once."""

import contextlib
import os
import sys

import click

from rkd import __version__, keep_freed_memory

from .commands import bench, compare, export, plugins, report, submit, sweep
from .commands import eval as evaluate
from .commands import run as train
from .commands import teachers as teaching
from .commands.lookup import cite, info, list_plugins, recipes
from .group import Commands
from .options import App, plugin_option


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Plugins may add commands of their own; `rkd list-plugins` shows what is installed.",
)
@click.version_option(__version__, prog_name="rkd")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@plugin_option
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Adversarially robust knowledge distillation: small networks that stay right under attack.

    `rkd run` alone does the main job on embedded data: it prepares a robust teacher, distils it into a small student,
    and shows both beside the same student without a teacher.
    """
    context.ensure_object(App).debug = debug


for command in (
    train.run, evaluate.evaluate, bench.bench, report.report, compare.compare, list_plugins.list_plugins,
    plugins.plugins, info.info, cite.cite, recipes.recipes, export.export, sweep.sweep, submit.submit,
    teaching.teachers,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """The command line, in a process of its own or in one that is somebody else's too."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode shows `?` for a formula's letters; it is no reason to fail.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        cli.main(prog_name="rkd")
    except SystemExit as end:
        if not end.code and os.environ.get("WORLD_SIZE", "1") != "1":
            _end_at_once()
        raise


def _end_at_once() -> None:
    """End one of several processes whose work is done, without taking torch down.

    Now and then a thread of torch's (2.15, gloo, on CPUs) is still there when Python takes libraries down, and the
    process aborts ("terminate called without an active exception"): torchrun and job systems then call a job failed
    that has written everything.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()
    os._exit(0)

"""`rkd export`: a run's student as files that others run, and what is left of its robustness there."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from rkd.core.errors import ConfigError

from ..complete import values
from ..options import App, json_option, pass_app, plugin_option, split_attacks, verbosity_options


@click.command("export", short_help="Export a run's student: PyTorch, ONNX, timm, Hugging Face, ...")
@click.argument("run", metavar="RUN", type=click.Path(), shell_complete=values(runs=True))
@click.option("--to", "format", metavar="FORMAT", required=True, shell_complete=values("exporter"),
              help="torch, onnx, timm, hf, ...; `rkd list-plugins --kind exporter` lists them.")  # fmt: skip
@click.option("--int8", is_flag=True, help="Rounded to eight bits besides, calibrated on training images.")
@click.option("--out", metavar="DIR", type=click.Path(), help="A new folder; RUN/exports/FORMAT unless given.")
@click.option("--push", metavar="OWNER/NAME", help="Send the folder to the Hugging Face hub.")
@click.option("--data-dir", metavar="DIR", help="Where the data set's files are.")
@click.option("--attack", "attacks", multiple=True, metavar="NAME", shell_complete=values("attack"), help="Attack on "
              "what was exported; repeatable. `none`: clean alone. The run's own and square unless given.")  # fmt: skip
@click.option("--limit", type=int, help="Number of test images that are attacked; the run's own unless given.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting: export.KEY=VALUE, "
              "attack.KEY=VALUE, attack.NAME.KEY=VALUE, data.KEY=VALUE; repeatable.")  # fmt: skip
@json_option
@verbosity_options
@plugin_option
@pass_app
def export(app: App, run: str, attacks: tuple[str, ...], sets: Sequence[str], **options: Any) -> None:
    """Write the student of a finished run as files that run without rkd, its normalisation inside.

    What comes out is read back and evaluated like a net: clean on all test images, and under attack. The table beside
    the net's own numbers stands in the folder's README.md, a model card, and in export.json.
    """
    app.load_torch()
    from rkd.workflow.exporting.export import ExportRequest, export_request

    from ..progress import Display
    from ..signals import Interrupts
    from ..tables import show_export

    request = ExportRequest(
        run, attacks=split_attacks("--attack", attacks), settings=export_settings(sets), command=("rkd", *app.words),
        **options,
    )  # fmt: skip
    interrupts = Interrupts()
    with interrupts.noted(), app.terminal.guarded():
        facts = export_request(request, app.catalog(), Display(app.terminal, interrupts))
    if app.json:
        app.terminal.json(facts)
        return
    show_export(facts, app.terminal)
    app.terminal.result(f"wrote {facts['folder']}")
    if "pushed" in facts:
        app.terminal.result(f"sent to {facts['pushed']}")


def export_settings(sets: Sequence[str]) -> dict[str, Any]:
    """The tables of `--set`. Raises ConfigError."""
    from rkd.registry.recipes import assignments

    table = assignments(sets)
    known = ("export", "attack", "evaluate", "data")
    if wrong := [key for key, value in table.items() if key not in known or not isinstance(value, Mapping)]:
        raise ConfigError([f"--set {key}: here there is {', '.join(f'{k}.KEY=VALUE' for k in known)}" for key in wrong])
    return table

"""`rkd run`: teachers, training, evaluation, a folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rkd.core.errors import RkdError, TrainingFailed
from rkd.storage.text import command

from ..complete import values
from ..options import App, Grouped, json_option, plugin_option, verbosity_options
from ..settings import run_table

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog
    from rkd.workflow.folders import RunFolder

    from ..terminal import Terminal

Table = dict[str, Any]

FREE = {
    "out", "dry_run", "fast_dev_run", "resume", "report", "json", "quiet", "verbose", "plugin", "accept_changes",
    "epochs",
}  # fmt: skip
"""Options that go with --resume: all but the last say nothing about the run itself."""


GROUPS = {
    "What is trained": "dataset data_dir download limit_train student teacher teacher_epochs baseline loss attack "
                       "objective scheduler augment extension",
    "How long, how fast": "epochs batch_size lr seed on_nan device precision engine auto_batch grad_accumulation "
                          "sync_bn",
    "What is evaluated": "evaluate",
    "The run's folder": "name out resume accept_changes report dry_run fast_dev_run",
}  # fmt: skip


@click.command("run", cls=Grouped, groups=GROUPS, short_help="Prepare teachers, train a student, evaluate it.")
@click.argument("recipe", required=False, type=click.Path(), shell_complete=values(recipes=True))
@click.option("--dataset", metavar="NAME", help="Data set; digits needs no download.", shell_complete=values("dataset"))
@click.option("--data-dir", metavar="DIR", help="Where the data set's files are.")
@click.option("--download", is_flag=True, help="Allow the data set to be downloaded.")
@click.option("--limit-train", metavar="N", help="So many of the training images alone, or a share of them (0.1), "
              "of each class its part.")  # fmt: skip
@click.option("--student", metavar="NET[+CONVERSION...][@FILE]", help="Student, such as resnet18 or "
              "resnet18+aux-bn; with @FILE it starts from those weights.",
              shell_complete=values("model"))  # fmt: skip
@click.option("--teacher", multiple=True, metavar="[ROLE=]REF", help="Teacher: MODEL@WEIGHTS, a finished run's "
              "folder, zoo:NAME of `rkd teachers list`, or MODEL alone, which is prepared; repeatable.",
              shell_complete=values("model", zoo=True, runs=True))  # fmt: skip
@click.option("--teacher-epochs", type=int, metavar="N", help="Epochs of teachers that are prepared; the data set's "
              "usual number unless given.")  # fmt: skip
@click.option("--baseline", metavar="LOSS", help="Train the same student without teachers first, such as by pgd-at, "
              "and show it beside; `none`: not the recipe's.", shell_complete=values("loss"))  # fmt: skip
@click.option("--loss", metavar="NAME", help="Method, such as mtard-anl (the default), rslad, trades, pgd-at.",
              shell_complete=values("loss"))  # fmt: skip
@click.option("--attack", multiple=True, metavar="[VIEW=]NAME", help="Attack of the training instead of the method's.",
              shell_complete=values("attack"))  # fmt: skip
@click.option("--objective", metavar="NAME", help="What the attack maximises instead of the method's.",
              shell_complete=values("objective"))  # fmt: skip
@click.option("--scheduler", multiple=True, metavar="NAME", help="Adaptive weights; `none`: without the method's own.",
              shell_complete=values("scheduler"))  # fmt: skip
@click.option("--augment", multiple=True, metavar="NAME", help="Augmentation; repeatable, in order.",
              shell_complete=values("augment"))  # fmt: skip
@click.option("--with", "extension", multiple=True, metavar="NAME", help="Extension, such as awp or ema, or tracker, "
              "such as tensorboard or wandb; repeatable.", shell_complete=values("extension", "tracker"))  # fmt: skip
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--auto-batch", is_flag=True, help="Find the fewest parts of a batch that fit into memory.")
@click.option("--grad-accumulation", type=int, metavar="N", help="Compute each batch in N parts, to save memory.")
@click.option("--sync-bn", is_flag=True, help="Under torchrun: batch norm over the samples of all processes.")
@click.option("--lr", metavar="X", help="Learning rate at the start of its schedule.")
@click.option("--seed", type=int)
@click.option("--evaluate", multiple=True, metavar="A,B,...", help="Attacks of the final evaluation: fgsm,pgd-sat,cw.",
              shell_complete=values("attack"))  # fmt: skip
@click.option("--device", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1, ...")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16", "auto"]), help="Inside the nets: fp32 (the "
              "default), bf16, fp16 (GPUs); auto: bf16 on GPUs that have it.")  # fmt: skip
@click.option("--engine", type=click.Choice(["auto", "plain", "folded", "channels-last", "fused", "compiled"]),
              help="How the attacked student runs: auto (the default) on a frozen copy with folded batch norms and, "
              "on CPUs, fused layers; plain as it is; the others force one kind of copy (compiled: "
              "torch.compile).")  # fmt: skip
@click.option("--on-nan", type=click.Choice(["stop", "skip", "rollback"]), help="A loss or weight that is not finite: "
              "stop (the default), skip the batch, or go back an epoch.")  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting, such as attack.steps=7; "
              "repeatable.")  # fmt: skip
@click.option("--name", help="Name of the run's folder; made of method, student, data and seed unless given.")
@click.option("--out", metavar="DIR", default="runs", show_default=True, help="Where the run's folder goes.")
@click.option("--resume", metavar="RUN", help="Continue an interrupted run: its folder, or its name under --out. With "
              "--epochs N also a finished one, for more epochs.", shell_complete=values(runs=True))  # fmt: skip
@click.option("--accept-changes", is_flag=True, help="With --resume: go on with what config.toml and options say now.")
@click.option("--report/--no-report", default=True, help="Write report.html, a page about the run, at its end.")
@click.option("--dry-run", is_flag=True, help="Show the resolved recipe and what it costs; write nothing.")
@click.option("--fast-dev-run", is_flag=True, help="Try all of it, teachers, training, evaluation and report, on two "
              "batches each; keep nothing.")  # fmt: skip
@json_option
@verbosity_options
@plugin_option
@click.pass_context
def run(context: click.Context, recipe: str | None, name: str | None, out: str, resume: str | None, report: bool,
        dry_run: bool, fast_dev_run: bool, accept_changes: bool, sets: tuple[str, ...],
        **options: Any) -> None:  # fmt: skip
    """Prepare teachers, train a student, evaluate it, and write all of it into a folder.

    RECIPE is a shipped recipe's name (`rkd recipes`) or a .toml file; options go on top of it, --set on top of both.
    Without a recipe or an option of the first group, the recipe first-run: digits, and what a teacher brings there.
    """
    from rkd.workflow.folders import RunFolder, new_run_folder, restarted_run

    app = context.ensure_object(App)
    ranks = app.meet()
    resumed = resume is not None
    catalog = app.catalog()
    if resume is not None:
        path = ranks.once(lambda: _resumable(context, resume, out, accept_changes))
        if ranks.from_first(_is_done(path, options["epochs"])):
            _finish(RunFolder(path), catalog, app, report)
            return
        recipe = str(path / "config.toml")
    elif accept_changes:
        raise RkdError("--accept-changes goes with --resume")
    table = run_table(recipe, options, sets, catalog)
    if fast_dev_run:
        _try(table, catalog, app, resumed, dry_run=dry_run, report=report)
        return
    if not resumed:
        begun = ranks.once(lambda: restarted_run(name, out, ranks))
        path, resumed = begun or ranks.once(lambda: new_run_folder(table, name, out)), begun is not None
    changed = resume is not None and (accept_changes or options["epochs"] is not None)
    run_command(table, catalog, path, app, resume=resumed, changed=changed, dry_run=dry_run, report=report)


def _try(table: Table, catalog: Catalog, app: App, resumed: bool, **options: bool) -> None:
    """Run a configuration cut down to a few batches, in a folder and a cache that are removed. Raises RkdError."""
    from rkd.workflow.folders import throwaway
    from rkd.workflow.forecast import shortened

    if resumed:
        raise RkdError("--fast-dev-run tries a run from the beginning and keeps nothing: take out --resume")
    with throwaway(app.ranks) as folder:
        run_command(shortened(table, catalog), catalog, folder / "run", app, resume=False, kept=False, **options)


def run_command(
    table: Mapping[str, Any], catalog: Catalog, path: Path, app: App, *, resume: bool, changed: bool = False,
    dry_run: bool, report: bool, kept: bool = True,
) -> None:  # fmt: skip
    """Run a configuration in the folder `path` and show its results. `kept`: whether the folder stays."""
    from rkd.workflow.folders import RunFolder
    from rkd.workflow.plan import ALONE
    from rkd.workflow.train import train_run

    from ..progress import Display
    from ..signals import Interrupts
    from ..tables import show_run
    from ..terminal import duration
    from .report import report_at_end

    terminal = app.terminal
    began = kept and (resume or not path.exists())
    told: list[str] = []

    def page(folder: RunFolder) -> Path | None:
        written, lines = report_at_end(folder, catalog, app)
        told.extend(lines)
        return written

    interrupts = Interrupts(
        lambda: terminal.message("stopping after this step; Ctrl-C once more stops at once", always=True)
    )
    try:
        with interrupts.noted(), terminal.guarded():
            results = train_run(
                table, catalog, path, Display(terminal, interrupts), title=_title(table), dry_run=dry_run,
                resume=resume, changed=changed, report=page if report else None, ranks=app.ranks or ALONE,
            )  # fmt: skip
    except (Exception, KeyboardInterrupt) as error:
        for note in _how_to_go_on(path, error, app.plugin_words) if began else []:
            error.add_note(note)
        for note in _plugin_files(path, catalog) if resume else []:
            error.add_note(note)
        raise
    app.leave()
    if not app.speaks:
        return
    if app.json:
        terminal.json(results)
    if dry_run:
        if not app.json:
            _show_plan(results, path, terminal)
        return
    folder = RunFolder(path)
    if not app.json:
        show_run(results, folder.read_json(folder.card), terminal)
        chosen = f"weights of epoch {results['student']['chosen_epoch'] + 1} of {results['epochs']}"
        terminal.result(
            f"wrote {path} in {duration(results['seconds'])} ({chosen})" if kept
            else f"all of it ran, in {duration(results['seconds'])}; the numbers mean nothing, and nothing is kept"
        )  # fmt: skip
    if not kept:
        return
    for line in told:
        terminal.message(line)
    known = [name for name in ("pgd-trades", "autoattack") if name in catalog.names("attack")]
    stronger = [word for name in known for word in ("--attack", name)]
    terminal.message(f"next: {command('eval', path, *stronger, *app.plugin_words)}")


def _resumable(context: click.Context, text: str, out: str, accept_changes: bool) -> Path:
    from rkd.workflow.folders import RunFolder, find_run
    from rkd.workflow.resume import check_config

    def shown(parameter: click.Parameter) -> str:
        return "RECIPE" if isinstance(parameter, click.Argument) else parameter.opts[0]

    given = [shown(p) for p in context.command.params if p.name not in FREE and p.name != "help"
             and context.get_parameter_source(str(p.name)) is not ParameterSource.DEFAULT]  # fmt: skip
    never = [name for name in given if name in ("RECIPE", "--name")]
    if never or (given and not accept_changes):
        raise RkdError(f"--resume continues a run exactly as its config.toml says; take out {', '.join(given)}"
                       + ("" if never else ", or add --accept-changes"))  # fmt: skip
    folder = RunFolder.open(find_run(text, out))
    check_config(folder, accept_changes)
    return folder.path


def _is_done(path: Path, epochs: int | None) -> bool:
    """Whether a run is finished, and not to go on for more epochs."""
    from rkd.workflow.folders import RunFolder

    folder = RunFolder(path)
    place = folder.place()
    return folder.finished and (epochs is None or place is None or epochs <= place[0])


def _finish(folder: RunFolder, catalog: Catalog, app: App, report: bool) -> None:
    """Write the page of a finished run that was killed before. Raises RkdError where nothing is left to be done."""
    from .report import report_at_end

    if not (report and folder.lacks_report):
        raise RkdError(
            f"{folder.path} is finished; look at it with `{command('eval', folder.path)}`, repeat it with "
            f"`{command('run', folder.config)}`, or train it for more epochs with "
            f"`{command('run', '--resume', folder.path, '--epochs')} N`"
        )
    if app.speaks:
        app.terminal.message(f"{folder.path} is finished; its report was not")
        for line in report_at_end(folder, catalog, app)[1]:
            app.terminal.message(line)


def _title(table: Mapping[str, Any]) -> str:
    from rkd.registry.config import RunConfig

    student = table.get("student")
    model = student.get("model") if isinstance(student, Mapping) else None
    return f"student {model or RunConfig().student.model}"


def _how_to_go_on(path: Path, error: BaseException, plugins: Sequence[str]) -> list[str]:
    """What the folder holds after an error, and what to type."""
    from rkd.workflow.folders import RunFolder
    from rkd.workflow.resume import place_of

    folder = RunFolder(path)
    if not folder.config.is_file():
        if isinstance(error, KeyboardInterrupt):
            return [f"{path} was not begun; teachers that are complete stay in the cache"]
        return []
    place = folder.place()
    if isinstance(error, TrainingFailed):
        holds = [f"{path} holds what there is of the run; begin a new one with other settings"]
        onward = f"{command('run', '--resume', path, *plugins, '--accept-changes')} --lr X"
        return [*holds, *([f"or go on with them after {place_of(*place)}: {onward}"] if place else [])]
    held = f"the state after {place_of(*place)}" if place else "the configuration, no finished epoch yet"
    return [f"{path} holds {held}", f"continue with: {command('run', '--resume', path, *plugins)}"]


def _plugin_files(path: Path, catalog: Catalog) -> list[str]:
    """Local plugin files that the run was started with and that are not loaded now: they are not loaded unasked."""
    from rkd.workflow.manifest import RunFolder, earlier_manifest

    plugins = earlier_manifest(RunFolder(path)).get("plugins", {})
    missing = [
        word
        for key, file in plugins.items()
        if key.startswith("file/") and key not in catalog.plugins.plugins
        for word in ("--plugin", str(file))
    ]
    return [f"the run was started with {shlex.join(missing)}"] if missing else []


def _show_plan(plan: Mapping[str, Any], path: Path, terminal: Terminal) -> None:
    """The resolved configuration as a recipe, its cost in comments."""
    import tomli_w

    from ..terminal import duration, memory

    head = ["what `rkd run` would do; nothing was written", f"folder: {path}"]
    head += [f"teacher {t['role']}: {t['model']}, {t['source']}" for t in plan["teachers"]]
    size = f", {memory(plan['memory'])}" if plan["memory"] else ""
    head += [f"training: about {duration(plan['seconds'])}{size}; each step:"]
    head += [f"  {name}: {c['forwards']} forwards, {c['backwards']} backwards" for name, c in plan["cost"].items()]
    for line in head:
        terminal.result(f"# {line}")
    terminal.result()
    terminal.result(tomli_w.dumps(_filled(plan["config"])).rstrip())


def _filled(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty tables, which say nothing."""
    inner = {key: _filled(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    return {key: value for key, value in inner.items() if value != {}}

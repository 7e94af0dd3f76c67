"""Carries out `rkd run`: progress while it goes, tables at its end, words on how to go on where it stops."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rkd.core.errors import TrainingFailed
from rkd.distributed.ranks import ALONE, leave
from rkd.registry.catalog import Catalog
from rkd.registry.config import RunConfig
from rkd.storage.runfolder import RunFolder
from rkd.training.checkpoints import place_of
from rkd.workflow.manifest import earlier_manifest
from rkd.workflow.train import train_run

from .commands.report import report_at_end
from .interrupts import Interrupts
from .progress import Display
from .results import show_run
from .shared import App
from .terminal import Terminal, duration, memory


def carry_out(
    table: Mapping[str, Any], catalog: Catalog, path: Path, app: App, *, resume: bool = False, dry_run: bool = False,
    report: bool = True,
) -> None:  # fmt: skip
    """Run a configuration in the folder `path` and show its results."""
    terminal = app.terminal
    ranks = app.ranks or ALONE
    began = resume or not path.exists()
    interrupts = Interrupts(lambda: terminal.message("stopping after this step; once more stops at once", always=True))
    display = Display(terminal, interrupts)
    try:
        with interrupts.noted(), terminal.guarded():
            results = train_run(
                table, catalog, path, display, title=_title(table), dry_run=dry_run, resume=resume, ranks=ranks
            )
    except (Exception, KeyboardInterrupt) as error:
        for note in _how_to_go_on(path, error) if began else []:
            error.add_note(note)
        for note in _plugin_files(path, catalog) if resume else []:
            error.add_note(note)
        raise
    leave(ranks)
    if not ranks.first:
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
        kept = f"weights of epoch {results['student']['chosen_epoch'] + 1} of {results['epochs']}"
        terminal.result(f"wrote {path} in {duration(results['seconds'])} ({kept})")
    if report:
        report_at_end(folder, catalog, app)
    stronger = [f" --attack {name}" for name in ("pgd-trades", "autoattack") if name in catalog.names("attack")]
    terminal.message(f"next: rkd eval {path}{''.join(stronger)}")


def _title(table: Mapping[str, Any]) -> str:
    student = table.get("student")
    model = student.get("model") if isinstance(student, Mapping) else None
    return f"student {model or RunConfig().student.model}"


def _how_to_go_on(path: Path, error: BaseException) -> list[str]:
    """What the folder holds after an error, and what to type."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        if isinstance(error, KeyboardInterrupt):
            return [f"{path} was not begun; teachers that are complete stay in the cache"]
        return []
    if isinstance(error, TrainingFailed):
        return [f"{path} holds what there is of the run; a changed setting needs a new one"]
    place = folder.place()
    held = f"the state after {place_of(*place)}" if place else "the configuration, no finished epoch yet"
    return [f"{path} holds {held}", f"continue with: rkd run --resume {path}"]


def _plugin_files(path: Path, catalog: Catalog) -> list[str]:
    """Local plugin files that the run was started with and that are not loaded now: they are not loaded unasked."""
    folder = RunFolder(path)
    plugins = earlier_manifest(folder).get("plugins", {})
    missing = [
        shlex.quote(str(file))
        for key, file in plugins.items()
        if key.startswith("file/") and key not in catalog.plugins.plugins
    ]
    return [f"the run was started with {' '.join(f'--plugin {file}' for file in missing)}"] if missing else []


def _show_plan(plan: Mapping[str, Any], path: Path, terminal: Terminal) -> None:
    """The resolved configuration as a recipe, what it costs in its comments."""
    import tomli_w

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

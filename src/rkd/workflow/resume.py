"""Going on with a run: with the configuration that its checkpoint was made with, unless a change was asked for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rkd.core.errors import RkdError
from rkd.core.run import Run
from rkd.distributed.ranks import Ranks
from rkd.registry.recipes import read_recipe
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import command, parse_toml, read_text
from rkd.training.checkpoints import Checkpointer, place_of

from .manifest import differences, earlier_manifest
from .plan import Reporter

SHOWN = 8
"""Changed settings that a message names."""


def check_config(folder: RunFolder, accept: bool = False) -> None:
    """Raise RkdError that says what differs if config.toml is no longer what the newest checkpoint was made with.

    `accept`: it may differ. A change that was accepted and killed on its way into the file is brought to its end.
    """
    checkpoint = folder.peek() or {}
    old, kept = checkpoint.get("config"), folder.checkpoints / "config.toml"
    try:
        text, now = read_text(folder.config), read_recipe(folder.config)
    except RkdError as error:
        if isinstance(old, str):
            folder.write_text(kept, old)
            error.add_note(f"the one that the last checkpoint was made with is kept as {kept}")
        raise
    if digest(text) == checkpoint.get("replaces"):
        folder.write_config(str(old))
        return
    if accept:
        return
    go_on = f"go on with what it says now: {command('run', '--resume', folder.path, '--accept-changes')}"
    if not isinstance(old, str):  # no checkpoint yet, or one of an earlier version
        if earlier_manifest(folder).get("config", digest(text)) != digest(text):
            raise RkdError(f"{folder.config} has changed since the run began. Put the old one back, or {go_on}")
        return
    try:
        before = parse_toml(old)
    except ValueError as error:
        raise RkdError(f"{folder.last} holds no configuration that can be read ({error}); {go_on}") from None
    if found := changes(before, now):
        more = f" and {len(found) - SHOWN} more settings" if len(found) > SHOWN else ""
        folder.write_text(kept, old)
        raise RkdError(
            f"{folder.config} has changed since the last checkpoint: {', '.join(found[:SHOWN])}{more}. Put the old "
            f"one back (it is kept as {kept}), or {go_on}"
        )


def digest(text: str) -> str:
    """SHA-256 of a configuration's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def continue_run(
    run: Run, folder: RunFolder, ranks: Ranks, manifest: Mapping[str, Any], reporter: Reporter, changed: str | None
) -> dict[str, Any]:
    """Load the newest good checkpoint. Returns what the manifest keeps from before.

    `changed`: the configuration that takes the place of the folder's, if it is another one. Of a finished run that
    goes on for more epochs the results so far stay as `evaluation-EPOCHS.json`.
    """
    earlier = earlier_manifest(folder)
    for note in differences(earlier, manifest):
        reporter.message(note)

    def load() -> tuple[dict[str, Any] | None, list[str]]:
        folder.tidy()
        return folder.load()

    # One process reads for all: what it finds damaged, it deletes.
    state, damaged = ranks.once(load)
    for problem in damaged:
        reporter.message(f"{problem}; the checkpoint before it is used")
    finished = ranks.from_first(folder.finished)  # by another process, while this one was waiting; or to be lengthened
    if finished and (state is None or changed is None or state["epoch"] >= run.epochs):
        raise RkdError(f"{folder.path} is finished")
    kept = {"started": earlier.get("started", manifest["started"]), "resumed": earlier.get("resumed", 0) + 1}
    if state is None:
        reporter.message("the run has no checkpoint yet: it starts from the beginning")
        folder.rewrite_history([])
        if changed is not None:
            folder.write_config(changed)
        return kept
    try:
        run.load_state_dict(state)
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise RkdError(f"{folder.last} does not belong to this configuration: {error}") from None
    if run.state.epoch > run.epochs:
        raise RkdError(f"{folder.path} has trained for {run.state.epoch} epochs already: --epochs must not be less")
    folder.rewrite_history(run.state.history)
    if run.state.best_weights is not None:  # the file may be of a later epoch, which comes again
        folder.save_weights(folder.best, run.state.best_weights)
    place = place_of(run.state.epoch, run.state.batch, len(run.loader))
    reporter.message(f"continuing after {place} of {run.epochs}")
    if changed is not None:
        if finished:
            results = folder.path / f"evaluation-{run.state.epoch}.json"
            rate = run.lr * run.lr_scale
            reporter.message(f"the results so far stay in {results}; the learning rate goes on at {rate:g}")
            ranks.once(lambda: folder.evaluation.replace(results) and None)
        _replace_config(run, folder, changed)
    return kept


def _replace_config(run: Run, folder: RunFolder, text: str) -> None:
    """Killed after the checkpoint, `check_config` finds in it that the file is still to be written."""
    assert isinstance(run.checkpoints, Checkpointer)
    run.checkpoints.replaces = digest(read_text(folder.config))
    run.checkpoints.save(run)
    folder.write_config(text)
    run.checkpoints.replaces = None


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings in which two configurations differ, in words."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key} {before.get(key, '(not set)')} -> {after.get(key, '(not set)')}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)

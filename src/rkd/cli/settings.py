"""From the options of `rkd run` to a table of settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.core.errors import ConfigError, RkdError
from rkd.storage.text import command

from .options import split_attacks

if TYPE_CHECKING:
    from rkd.registry.catalog import Catalog


FIRST_RUN = "first-run"
"""The recipe of a run that says nothing of what is trained."""

CHOICES = {
    "data", "student", "teachers", "loss", "attack", "attacks", "objective", "threat", "schedulers", "augments",
    "extensions", "companions",
}  # fmt: skip
"""Sections that say what is trained; a run's length, seed or evaluation do not."""


def run_table(recipe: str | None, options: Mapping[str, Any], sets: Sequence[str], catalog: Catalog) -> dict[str, Any]:
    """A recipe, the options on top of it, `--set` on top of both. Raises ConfigError, UnknownName."""
    from rkd.registry.defaults import default_schedulers, loss_of
    from rkd.registry.recipes import assignments, merge, read_recipe

    if recipe and os.path.isdir(recipe):
        raise RkdError(
            f"{recipe} is a folder; type `{command('run', '--resume', recipe)}` to continue that run, "
            f"`{command('run', Path(recipe) / 'config.toml')}` to repeat it"
        )
    given = option_table(options, catalog.names("tracker"))
    settings = assignments(sets)
    if recipe is None and not CHOICES & {*given, *settings}:
        recipe = FIRST_RUN
    base = read_recipe(recipe) if recipe is not None else {}
    # What is named on the command line replaces the recipe's choice, not only adds to it.
    if "student" in given and isinstance(base.get("student"), Mapping):
        same = base["student"].get("model") == given["student"]["model"]
        base["student"] = {k: v for k, v in base["student"].items() if same and k != "conversions"}
    if options.get("scheduler") and isinstance(base.get("schedulers"), Mapping):
        base["schedulers"] = {k: v for k, v in base["schedulers"].items() if k in given["schedulers"]}
    table = merge(base, given)
    if isinstance(named := settings.get("teachers"), Mapping):  # --set teachers.ROLE.KEY=VALUE
        if wrong := [role for role, more in named.items() if not isinstance(more, Mapping)]:
            raise ConfigError(f"--set teachers.{wrong[0]}=...: expected teachers.ROLE.KEY=VALUE")
        settings["teachers"] = [*table.get("teachers", []), *({"role": role, **more} for role, more in named.items())]
    table = merge(table, settings)
    if "none" in options.get("scheduler", ()):
        if not isinstance(table.get("schedulers"), Mapping):
            raise ConfigError("schedulers: is a table of settings")
        kept = {name: value for name, value in table["schedulers"].items() if name != "none"}
        table["schedulers"] = dict.fromkeys(default_schedulers(loss_of(table, catalog)), False) | kept
    return table


def option_table(options: Mapping[str, Any], trackers: Sequence[str] = ()) -> dict[str, Any]:
    """What the options of the command line say, as far as they were given. `--with` takes `trackers`, too."""
    table: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        if value is not None and value is not False:
            *parents, last = key.split(".")
            place = table
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value

    plain = {"dataset": "data.name", "data_dir": "data.dir", "download": "data.download", "loss": "loss.name",
             "objective": "objective.name", "lr": "optimizer.lr", "teacher_epochs": "preparation_epochs",
             "limit_train": "data.limit_train"}  # fmt: skip
    for option, key in plain.items():
        put(key, options.get(option))
    same = ("epochs", "batch_size", "grad_accumulation", "sync_bn", "seed", "device", "precision", "engine", "on_nan")
    for option in same:
        put(option, options.get(option))
    if (baseline := options.get("baseline")) is not None:
        table["baseline"] = False if baseline == "none" else {"loss": baseline}
    if options.get("student") is not None:
        net, at_sign, weights = options["student"].partition("@")
        if at_sign and not weights:
            raise ConfigError(f"--student {options['student']}: an empty part; expected NET[+CONVERSION...][@FILE]")
        put("student.weights", weights or None)
        model, *conversions = _parts("--student", net)
        put("student.model", model)
        for name in conversions:
            put(f"student.conversions.{name}", {})
    problems = []
    for text in options.get("attack", ()):
        view, name = _assigned(text)
        if (view or "adv") in _views(table):
            problems.append(f"--attack {text}: the view {view or 'adv'!r} has an attack already")
        put("attack.name" if view in (None, "adv") else f"attacks.{view}.name", name)
    if problems:
        raise ConfigError(problems)
    if options.get("teacher"):
        put("teachers", [_teacher(text) for text in options["teacher"]])
    for kind, option in (("schedulers", "scheduler"), ("augments", "augment")):
        for name in options.get(option, ()):
            put(f"{kind}.{name}", {})
    for name in options.get("extension", ()):
        put(f"{'trackers' if name in trackers else 'extensions'}.{name}", {})
    if (attacks := split_attacks("--evaluate", options.get("evaluate", ()))) is not None:
        put("evaluate.attacks", attacks)
    return table


def _views(table: Mapping[str, Any]) -> set[str]:
    return ({"adv"} if "attack" in table else set()) | set(table.get("attacks", {}))


def _assigned(text: str) -> tuple[str | None, str]:
    """`ROLE=REF` or `REF`. A path or URL may hold `=` itself: only a word before the first one is a role."""
    role, equals, rest = text.partition("=")
    if equals and re.fullmatch(r"[A-Za-z_][\w-]*", role) and rest:
        return role, rest
    return None, text


def _teacher(text: str) -> dict[str, Any]:
    if not text:
        raise ConfigError("--teacher: expected [ROLE=]REF, such as robust=wrn34@FILE or clean=runs/my-run")
    role, reference = (None, text) if os.path.isdir(text) else _assigned(text)
    return {"reference": reference} | ({"role": role} if role else {})


def _parts(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise ConfigError(f"{option} {text}: expected NET or NET+CONVERSION, such as resnet18+aux-bn")
    return parts

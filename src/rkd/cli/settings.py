"""From the options of `rkd run` to the nested table that a recipe is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.core.errors import ConfigError, RkdError
from rkd.storage.runfolder import RunFolder, safe_name

from .shared import split_attacks

if TYPE_CHECKING:
    from rkd.distributed.ranks import Ranks

Table = dict[str, Any]


def run_table(recipe: str | None, options: Mapping[str, Any], sets: tuple[str, ...], catalog: Any) -> Table:
    """A recipe, the options on top of it, `--set` on top of both. Raises ConfigError, UnknownName."""
    from rkd.registry.config import assignments, merge, read_recipe

    if recipe and Path(recipe).is_dir():
        raise RkdError(
            f"{recipe} is a folder; type `rkd run --resume {recipe}` to continue that run, "
            f"`rkd run {recipe}/config.toml` to repeat it"
        )
    base = read_recipe(recipe) if recipe is not None else {}
    given = option_table(options)
    # What is named on the command line replaces the recipe's choice, not only adds to it.
    if "student" in given and isinstance(base.get("student"), Mapping):
        same = base["student"].get("model") == given["student"]["model"]
        base["student"] = {k: v for k, v in base["student"].items() if same and k != "conversions"}
    if options["scheduler"] and isinstance(base.get("schedulers"), Mapping):
        base["schedulers"] = {k: v for k, v in base["schedulers"].items() if k in given["schedulers"]}
    table = merge(base, given)
    if "none" in options["scheduler"]:
        if not isinstance(table.get("schedulers"), Mapping):
            raise ConfigError("schedulers: is a table of settings")
        table["schedulers"].pop("none", None)
        if default := _default_scheduler(table, catalog):
            table["schedulers"].setdefault(default, False)
    return merge(table, assignments(sets))


def option_table(options: Mapping[str, Any]) -> Table:
    """What the options of the command line say, without those that were not given."""
    table: Table = {}

    def put(key: str, value: Any) -> None:
        if value is not None and value is not False:
            *parents, last = key.split(".")
            place = table
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value

    plain = {"dataset": "data.name", "data_dir": "data.dir", "download": "data.download", "loss": "loss.name",
             "objective": "objective.name", "lr": "optimizer.lr"}  # fmt: skip
    for option, key in plain.items():
        put(key, options[option])
    values = ("epochs", "batch_size", "grad_accumulation", "sync_bn", "seed", "device", "precision", "engine", "on_nan")
    for option in values:
        put(option, options[option])
    if options["student"] is not None:
        model, *conversions = _parts("--student", options["student"])
        put("student.model", model)
        for name in conversions:
            put(f"student.conversions.{name}", {})
    problems = []
    for text in options["attack"]:
        view, name = _assigned(text)
        if (view or "adv") in _views(table):
            problems.append(f"--attack {text}: the view {view or 'adv'!r} has an attack already")
        put("attack.name" if view in (None, "adv") else f"attacks.{view}.name", name)
    if problems:
        raise ConfigError(problems)
    if options["teacher"]:
        put("teachers", [_teacher(text) for text in options["teacher"]])
    for kind, option in (("schedulers", "scheduler"), ("augments", "augment"), ("extensions", "extension")):
        for name in options[option]:
            put(f"{kind}.{name}", {})
    if (attacks := split_attacks("--evaluate", options["evaluate"])) is not None:
        put("evaluate.attacks", attacks)
    return table


def _views(table: Table) -> set[str]:
    return ({"adv"} if "attack" in table else set()) | set(table.get("attacks", {}))


def run_folder(table: Mapping[str, Any], name: str | None, out: str) -> Path:
    """Where a run goes: `--name`, else a free name made of the recipe's, or of what is trained on what."""
    from rkd.registry.config import RunConfig

    if name is not None:
        return Path(out) / safe_name(name)
    usual = RunConfig()

    def get(section: str, key: str, default: str) -> str:
        inner = table.get(section)
        return str(inner.get(key, default)) if isinstance(inner, Mapping) else default

    conversions = (table.get("student") or {}).get("conversions") if isinstance(table.get("student"), Mapping) else None
    if not isinstance(conversions, Mapping):
        conversions = {}  # whatever else it is, resolving the configuration tells
    kept = (name for name, options in conversions.items() if options is not False)
    student = "+".join([get("student", "model", usual.student.model), *kept])
    parts = [get("loss", "name", usual.loss.name), student, get("data", "name", usual.data.name)]
    base = str(table.get("name") or f"{'-'.join(parts)}-s{table.get('seed', usual.seed)}")
    base = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", base).strip("-.")[:120] or "run"
    number = 1
    while (path := Path(out) / (base if number == 1 else f"{base}-{number}")).exists():
        number += 1
    return path


def begun(table: Mapping[str, Any], name: str | None, out: str, ranks: Ranks) -> tuple[Path, bool] | None:
    """The run that these processes had begun when torchrun restarted them (`--max-restarts`), to be continued."""
    if not ranks.attempt:
        return None
    for path in [Path(out) / safe_name(name)] if name is not None else sorted(Path(out).glob("*")):
        folder = RunFolder(path)
        if not folder.config.is_file() or folder.evaluation.is_file():
            continue
        if folder.manifest.is_file() and folder.read_json(folder.manifest).get("launch") == ranks.launch:
            return path, True
    return None


def _assigned(text: str) -> tuple[str | None, str]:
    """`ROLE=REF` or `REF`. A path or URL may hold `=` itself: only a word before the first one is a role."""
    role, equals, rest = text.partition("=")
    if equals and re.fullmatch(r"[A-Za-z_][\w-]*", role) and rest:
        return role, rest
    return None, text


def _teacher(text: str) -> Table:
    if not text:
        raise ConfigError("--teacher: expected [ROLE=]REF, such as robust=wrn34@FILE or clean=runs/my-run")
    role, reference = (None, text) if Path(text).is_dir() else _assigned(text)
    return {"reference": reference} | ({"role": role} if role else {})


def _parts(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise ConfigError(f"{option} {text}: expected NET or NET+CONVERSION, such as resnet18+aux-bn")
    return parts


def _default_scheduler(table: Mapping[str, Any], catalog: Any) -> str | None:
    from rkd.registry.config import RunConfig

    loss = table.get("loss")
    name = loss.get("name") if isinstance(loss, Mapping) else None
    try:
        component = catalog.find("loss", str(name or RunConfig().loss.name)).component
    except RkdError:
        return None  # told with all other problems, when the run is resolved
    return dict(getattr(component, "defaults", {})).get("scheduler")

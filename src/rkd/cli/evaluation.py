"""What `rkd eval` evaluates: a net, and a resolved configuration that holds the data, the attacker and the attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rkd.core.errors import ConfigError, RkdError
from rkd.core.nets import Net
from rkd.core.runfolder import RunFolder
from rkd.registry.build import choose_device
from rkd.registry.catalog import Catalog
from rkd.registry.config import assignments, merge, read_recipe
from rkd.registry.execute import evaluate_net as run_attacks
from rkd.registry.load import load_file, load_run
from rkd.registry.resolve import Plan, resolve
from rkd.registry.teachers import settle_normalization

from .progress import Display
from .shared import App, find_run, split_names


@dataclass(frozen=True)
class Subject:
    """A net in need of evaluation."""

    name: str
    model: str
    net: Net
    plan: Plan


def of_run(text: str, options: Mapping[str, Any], catalog: Catalog) -> Subject:
    """The student of a finished run, on its own data unless told otherwise."""
    folder = RunFolder(find_run(text))
    loaded = load_run(folder.path, catalog)
    config = read_recipe(folder.config)
    own: dict[str, Any] = {key: config[key] for key in ("seed", "device", "data", "evaluate") if key in config}
    own["threat"] = dict(loaded.card["threat"])
    if options["dataset"]:
        own.get("evaluate", {}).pop("limit", None)  # it was meant for another number of test images
    plan = _plan(own, options, catalog)
    shape, classes = tuple(loaded.card["shape"]), len(loaded.card["classes"])
    if shape != tuple(plan.data.shape) or classes != len(plan.data.classes):
        raise RkdError(
            f"{folder.path} is for images {shape} and {classes} classes; data set {plan.data.name!r} has "
            f"{tuple(plan.data.shape)} and {len(plan.data.classes)}"
        )
    return Subject(str(folder.path), str(loaded.card["model"]), loaded.net, plan)


def of_file(path: Path, options: Mapping[str, Any], catalog: Catalog, app: App) -> Subject:
    """A net with weights from a file."""
    plan = _plan({}, options, catalog)
    data, model = plan.data, options["model"]
    settings = assignments(options["sets"]).get("model", {})
    net = load_file(path, model, data.shape, len(data.classes), catalog, data.mean, data.std, settings)
    settle_normalization(
        net, options["normalize"], str(path), data, lambda text: app.terminal.message(f"{text}; --normalize settles it")
    )
    return Subject(str(path), model, net, plan)


def evaluate_net(subject: Subject, app: App) -> dict[str, Any]:
    """Attack the net. Returns what `rkd eval --json` prints."""
    plan = subject.plan
    net = subject.net.to(choose_device(plan.config.device))
    result = run_attacks(net, plan, Display(app.terminal).evaluating(subject.name))
    return {
        "net": subject.name,
        "model": subject.model,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "data": plan.data.name,
        "threat": asdict(plan.data.threat),
        "seed": plan.config.seed,
    } | result.summary()


def _plan(own: Mapping[str, Any], options: Mapping[str, Any], catalog: Catalog) -> Plan:
    """A configuration with these options: a run's own settings yield to them."""
    table: dict[str, Any] = {"loss": {"name": "ce"}, **own}  # a method without teachers and attacks
    sets = assignments(options["sets"])
    if wrong := sets.keys() - {"attack", "model", "data"}:
        raise ConfigError([
            f"--set {key}: here there is attack.NAME.KEY, model.KEY and data.KEY" for key in sorted(wrong)
        ])  # fmt: skip
    attacks = {name: values for name, values in sets.get("attack", {}).items() if isinstance(values, Mapping)}
    if len(attacks) < len(sets.get("attack", {})):
        raise ConfigError("--set attack.KEY=VALUE: name the attack, as in --set attack.pgd-sat.steps=50")
    data = {"name": options["dataset"], "dir": options["data_dir"]} | sets.get("data", {})
    data = {key: value for key, value in data.items() if value is not None}
    rules: dict[str, Any] = {"limit": options["limit"], "batch_size": options["batch_size"]}
    rules = {key: value for key, value in rules.items() if value is not None}
    names = split_names(options["attacks"])
    if names:
        rules["attacks"] = [] if names == ["none"] else names
    table = merge(table, {"data": data} if data else {}, {"evaluate": rules})
    chosen = table["evaluate"].get("attacks")
    old = {name: o for name, o in table["evaluate"].get("options", {}).items() if chosen is None or name in chosen}
    table["evaluate"]["options"] = merge(old, attacks)
    if options["eps"] is not None:
        # The step size goes with the radius, at the share that the data set's custom gives it.
        table["threat"] = {k: v for k, v in own.get("threat", {}).items() if k == "norm"} | {"eps": options["eps"]}
    for key in ("seed", "device"):
        if options[key] is not None:
            table[key] = options[key]
    return resolve(table, catalog)

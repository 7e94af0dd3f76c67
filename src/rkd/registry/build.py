"""From a configuration to a Run. All problems that can be found are reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rkd.core.data import Dataset, Loader, hold_out
from rkd.core.errors import ConfigError, RkdError, did_you_mean
from rkd.core.interfaces import Loss, Teacher, TeacherReference
from rkd.core.nets import Net, NetStudent
from rkd.core.random import forked, key
from rkd.core.runfolder import RunFolder
from rkd.core.schedules import parse_schedule
from rkd.core.step import AttackPlan
from rkd.core.trainer import Run, Validation, run_hooks
from rkd.core.types import ThreatModel

from .catalog import Catalog
from .config import AttackConfig, Component, RunConfig, Table, TeacherConfig, merge, nested, parse
from .options import plain, values_of


@dataclass
class Plan:
    """A resolved configuration with the instances of its components; nets are not built yet."""

    config: RunConfig
    data: Dataset
    loss: Loss
    attacks: dict[str, AttackPlan]
    schedulers: dict[str, Any]
    augments: list[Any]
    extensions: dict[str, Any]
    teachers: list[TeacherReference]
    evaluation: dict[str, AttackPlan]
    validation_attack: AttackPlan | None


class _Problems:
    """Collects the problems of a configuration instead of stopping at the first."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def catch(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as error:
            self.found += error.problems
        except RkdError as error:
            self.found.append(str(error))
        return None

    def stop(self) -> None:
        if self.found:
            raise ConfigError(list(dict.fromkeys(self.found)))


def resolve(table: Mapping[str, Any], catalog: Catalog) -> Plan:
    """Fill a configuration with the customs of its data set and method, check all of it, instantiate the components.

    Order: the schema's defaults < the data set's < the method's < `table`. Raises ConfigError.
    """
    problems = _Problems()
    first = problems.catch(lambda: parse(_with_names(table)))
    data = problems.catch(lambda: load_data(first or _partial(table), catalog))
    name = _name_of(table.get("loss"), "mtard-anl")
    given = table.get("loss")
    options = {k: v for k, v in given.items() if k != "name"} if isinstance(given, Mapping) else {}
    loss = problems.catch(lambda: catalog.create("loss", name, options, "loss"))
    if loss is None:  # with wrong options its class still says what belongs to the method
        entry = problems.catch(lambda: catalog.find("loss", name))
        loss = getattr(entry, "component", None)
    if data is None or loss is None or first is None:
        _check_names(table, loss, catalog, problems)
        problems.stop()
    method = method_defaults(loss, table, catalog)
    table = merge(_customs(data, method, table), method, table)
    table.setdefault("loss", {})
    table["loss"]["name"] = name
    for part in ("attack", "objective"):
        if isinstance(table.get(part), Mapping) and "name" not in table[part]:
            given_options = ", ".join(f"{part}.{option}" for option in table[part])
            problems.found.append(f"{given_options}: the loss {name!r} runs no attack, so there is nothing to set")
            del table[part]
    config = problems.catch(lambda: parse(table))
    if config is None:
        problems.stop()

    data = problems.catch(lambda: _with_threat(data, config)) or data
    attacks = {}
    if config.attack:
        attacks["adv"] = problems.catch(lambda: _plan(config.attack, config.objective, catalog, problems))
    elif config.objective:
        problems.found.append(f"objective: the loss {name!r} runs no attack that could maximise it")
    for view, attack in config.attacks.items():
        attacks[view] = problems.catch(lambda view=view, attack=attack: _view_plan(view, attack, catalog))
    schedulers = _components("scheduler", config.schedulers, catalog, problems)
    augments = _components("augment", config.augments, catalog, problems)
    extensions = _components("extension", config.extensions, catalog, problems)
    conversions = _components("student", config.student.conversions, catalog, problems)
    problems.catch(lambda: catalog.create("model", config.student.model, config.student.options, "student"))
    teachers = problems.catch(lambda: teacher_references(config, loss, data, catalog)) or []
    evaluation = {
        attack: problems.catch(
            lambda attack=attack: _view_plan(
                "evaluate.options", _as_attack(attack, config.evaluate.options), catalog
            )
        )
        for attack in config.evaluate.attacks
    }
    if unknown := [a for a in config.evaluate.options if a not in config.evaluate.attacks]:
        problems.found += [f"evaluate.options.{a}: {a!r} is not among evaluate.attacks" for a in unknown]
    if config.evaluate.limit and config.evaluate.limit > len(data.test):
        problems.found.append(
            f"evaluate.limit: {config.evaluate.limit} is above the {len(data.test)} test images of {data.name}"
        )
    validation = None
    if config.validate_.steps and (config.data.validation or config.validate_.on == "test"):
        validation = problems.catch(
            lambda: AttackPlan(
                catalog.create("attack", "pgd", {"steps": config.validate_.steps, "start": "uniform"}, "validate"),
                catalog.create("objective", "ce"),
            )
        )
    problems.stop()
    _fill_in(config, loss, attacks, schedulers, augments, extensions, conversions, catalog)
    return Plan(
        config, data, loss, attacks, schedulers, list(augments.values()), extensions, teachers, evaluation, validation
    )


def load_data(config: RunConfig, catalog: Catalog) -> Dataset:
    """The data set of a configuration."""
    source = catalog.create("dataset", config.data.name, config.data.options, "data")
    return source()


def method_defaults(loss: Any, table: Mapping[str, Any], catalog: Catalog) -> Table:
    """What a loss brings along, as far as the user's table leaves it in force.

    Options of the default attack hold only as long as that attack is used; default schedulers only if none is named.
    An attack with a goal of its own (`cw`: the margin), chosen by the user, keeps it.
    """
    defaults = dict(getattr(loss, "defaults", {}))
    wanted: Table = {}
    default_attack = defaults.pop("attack", None)
    attack = _name_of(table.get("attack"), None) or default_attack
    own_options = {k.removeprefix("attack."): defaults.pop(k) for k in list(defaults) if k.startswith("attack.")}
    objective = defaults.pop("objective", None)
    if attack:
        wanted["attack"] = {"name": attack, **(own_options if attack == default_attack else {})}
        goal = "ce"
        if attack != default_attack and attack in catalog.entries["attack"]:
            goal = getattr(catalog.find("attack", attack).component, "objective", "ce")
        objective = objective if goal == "ce" else goal
    if objective:
        wanted["objective"] = {"name": objective}
    scheduler = defaults.pop("scheduler", None)
    if scheduler and set(table.get("schedulers") or {}) <= {scheduler}:
        wanted["schedulers"] = {scheduler: {}}
    return merge(wanted, nested(defaults))


def teacher_references(config: RunConfig, loss: Any, data: Dataset, catalog: Catalog) -> list[TeacherReference]:
    """The teachers in the order of the loss's roles, each with a role. Missing ones get the data set's usual model."""
    roles = list(getattr(loss, "roles", ()))
    named = [t.role for t in config.teachers if t.role]
    if len(set(named)) < len(named):
        raise ConfigError(f"teachers: the role {max(named, key=named.count)!r} is given twice")
    free = [role for role in roles if role not in named]
    if len(config.teachers) > len(roles):
        needs = f"needs {len(roles)} ({', '.join(roles)})" if roles else "needs none"
        raise ConfigError(f"teachers: {len(config.teachers)} given, but the loss {config.loss.name!r} {needs}")
    if len(roles) > 1 and (strange := [role for role in named if role not in roles]):
        raise ConfigError(
            f"teachers: the loss {config.loss.name!r} has no role {strange[0]!r}.{did_you_mean(strange[0], roles)} "
            f"Its roles: {', '.join(roles)}"
        )
    if len(roles) == 1 and named:
        free = []  # a single teacher may come in another role than the usual one: the role says how to prepare it
    for teacher in config.teachers:
        teacher.role = teacher.role or free.pop(0)
    recipes = {} if isinstance(loss, type) else getattr(loss, "prepare", {})
    for role in free:
        same = recipes.get(role, {}).get("student") == "same"
        model = config.student.model if same else data.teachers.get(role, {}).get("model")
        if not model:
            raise ConfigError(
                f"teachers: the loss {config.loss.name!r} needs a teacher in the role {role!r}; "
                f"type --teacher {role}=MODEL@WEIGHTS, --teacher {role}=RUN or --teacher {role}=MODEL"
            )
        config.teachers.append(
            TeacherConfig(reference=model, role=role, options=config.student.options if same else {})
        )
    order = {role: place for place, role in enumerate(roles)}
    config.teachers.sort(key=lambda t: order.get(t.role or "", 0))
    return [reference(t.reference, t.role or "", t.options, catalog) for t in config.teachers]


def reference(text: str, role: str, options: Mapping[str, Any], catalog: Catalog) -> TeacherReference:
    """Read MODEL, MODEL@WEIGHTS or a folder. Raises UnknownName for a model that does not exist."""
    model, at_sign, weights = text.partition("@")
    if not at_sign and Path(text).is_dir():
        return TeacherReference(text, role, None, None, options)
    source, colon, _ = text.partition(":")
    if colon and source in catalog.entries["teacher"]:
        return TeacherReference(text, role, None, None, options)
    if not at_sign and ("/" in text or text.endswith((".pt", ".pth", ".safetensors"))) and ":" not in text:
        raise ConfigError(
            f"teachers: {text!r} is neither a model nor the folder of a run; weights need their architecture, "
            f"as in --teacher {role}=wrn34@{text}"
        )
    catalog.create("model", model, options, f"teacher {role}")
    return TeacherReference(text, role, model, weights or None, options)


def build_net(name: str, options: Mapping[str, Any], data: Dataset, catalog: Catalog, seed: int = 0) -> Net:
    """An untrained net, normalised for the data. Its weights follow from the seed."""
    factory = catalog.create("model", name, options, "student")
    with forked(key(seed, "init")):
        return Net(factory(data.shape, len(data.classes)), data.mean, data.std)


def build(
    plan: Plan, catalog: Catalog, teachers: Mapping[str, Teacher], folder: RunFolder | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> Run:  # fmt: skip
    """The Run of a plan. `extensions` are further configured ones, such as a progress display."""
    config, data = plan.config, plan.data
    device = choose_device(config.device)
    net = build_net(config.student.model, config.student.options, data, catalog, config.seed)
    if config.student.normalize == "none":
        net = Net(net.arch)
    net.autocast = choose_precision(config.precision, device)
    student = NetStudent(net.to(device))
    for name, options in config.student.conversions.items():
        if options is False:
            continue
        student = catalog.create("student", name, options, f"student.conversions.{name}")(student)
    student.net.to(device)
    train, held_out = hold_out(data.train, config.data.validation, config.seed)
    if config.validate_.on == "test":
        held_out = data.test
    validation = None
    if held_out is not None:
        rules = config.validate_
        validation = Validation(held_out, plan.validation_attack, rules.every, rules.limit, rules.select)
    schedule = parse_schedule(config.optimizer.schedule)
    return Run(
        student=student,
        loss=plan.loss,
        loader=Loader(train, config.batch_size, config.seed, plan.augments, device),
        data=data,
        optimizer=_optimizer(config, student.net),
        epochs=config.epochs,
        seed=config.seed,
        lr=config.optimizer.lr,
        lr_schedule=schedule,
        clip_gradient=config.optimizer.clip_gradient,
        teachers=dict(teachers),
        attacks=plan.attacks,
        schedulers=plan.schedulers,
        validation=validation,
        folder=folder,
        hooks=run_hooks({**plan.extensions, **(extensions or {})}),
        device=device,
    )


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA where there is one, else the CPU. Raises RkdError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise RkdError(f"the device {name!r} cannot be used: {first}; try --device cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast inside a net's forward; None for float32. `auto`: bf16 on GPUs that have it."""
    if name == "bf16" or (name == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.bfloat16
    return None


def _optimizer(config: RunConfig, net: nn.Module) -> torch.optim.Optimizer:
    o = config.optimizer
    if o.name == "sgd":
        return torch.optim.SGD(
            net.parameters(), o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay
        )
    kind = torch.optim.Adam if o.name == "adam" else torch.optim.AdamW
    return kind(net.parameters(), o.lr, weight_decay=o.weight_decay)


def _plan(attack: Any, objective: Any, catalog: Catalog, problems: _Problems) -> AttackPlan:
    search = problems.catch(lambda: catalog.create("attack", attack.name, attack.options, "attack"))
    goal = objective.name if objective else getattr(search, "objective", "ce")
    options = objective.options if objective else {}
    return AttackPlan(search, problems.catch(lambda: catalog.create("objective", goal, options, "objective")))


def _view_plan(view: str, attack: Any, catalog: Catalog) -> AttackPlan:
    search = catalog.create("attack", attack.name, attack.options, f"{view}.{attack.name}")
    goal = attack.objective or getattr(search, "objective", "ce")
    return AttackPlan(search, catalog.create("objective", goal))


def _as_attack(name: str, options: Mapping[str, Table]) -> Any:
    return AttackConfig(**{"name": name, **options.get(name, {})})


def _components(kind: str, tables: Mapping[str, Any], catalog: Catalog, problems: _Problems) -> dict[str, Any]:
    return {
        name: problems.catch(lambda name=name, options=options: catalog.create(kind, name, options, f"{kind}s.{name}"))
        for name, options in tables.items()
        if options is not False
    }


def _with_threat(data: Dataset, config: RunConfig) -> Dataset:
    wish = config.threat
    threat: ThreatModel = data.threat
    if wish.norm == "L2" and threat.norm != "L2" and wish.eps is None:
        raise ConfigError(f"threat.eps: an L2 radius must be given, {data.name}'s custom is {threat.norm}")
    if wish.eps is not None:
        threat = threat.with_eps(wish.eps)
    threat = replace(threat, norm=wish.norm or threat.norm, step_size=wish.step_size or threat.step_size)
    if threat.norm == "Linf" and threat.eps > 1:
        raise ConfigError(f"threat.eps: images lie in [0, 1], so an Linf radius is at most 1, got {threat.eps:g}")
    return replace(data, threat=threat)


def _fill_in(
    config: RunConfig, loss: Any, attacks: Mapping[str, AttackPlan], schedulers: Mapping[str, Any],
    augments: Mapping[str, Any], extensions: Mapping[str, Any], conversions: Mapping[str, Any], catalog: Catalog,
) -> None:  # fmt: skip
    """Write every option's value into the configuration: a run's config.toml holds no hidden defaults."""
    _set_options(config.loss, loss)
    if config.attack:
        _set_options(config.attack, attacks["adv"].attack)
        config.objective = config.objective or Component(name=getattr(attacks["adv"].attack, "objective", "ce"))
        _set_options(config.objective, attacks["adv"].objective)
    for view, attack in config.attacks.items():
        _set_options(attack, attacks[view].attack)
    config.schedulers = _all_options(config.schedulers, schedulers)
    config.augments = _all_options(config.augments, augments)
    config.extensions = _all_options(config.extensions, extensions)
    config.student.conversions = _all_options(config.student.conversions, conversions)
    entry = catalog.find("model", config.student.model)
    factory = catalog.create("model", config.student.model, config.student.options, "student")
    config.student.__pydantic_extra__ = values_of(factory, entry.fixed)
    config.optimizer.schedule = plain(config.optimizer.schedule)


def _all_options(section: Mapping[str, Any], instances: Mapping[str, Any]) -> dict[str, Any]:
    # What was taken out stays named: otherwise the method's own part would come back when the run is repeated.
    return {name: False if given is False else values_of(instances[name]) for name, given in section.items()}


def _set_options(section: Any, instance: Any) -> None:
    section.__pydantic_extra__ = values_of(instance)


def _name_of(table: Any, default: str | None) -> str | None:
    return table.get("name", default) if isinstance(table, Mapping) else default


def _customs(data: Dataset, method: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    """The data set's usual settings. What they say of the attack needs an attack, and the usual threat."""
    customs = dict(data.defaults)
    if "attack" not in method or table.get("threat"):
        customs.pop("attack", None)
    return customs


def _with_names(table: Mapping[str, Any]) -> Table:
    """The table with stand-ins for names that the method will bring: `--set attack.steps=20` names no attack."""
    unnamed = [part for part in ("attack", "objective", "loss") if isinstance(table.get(part), Mapping)]
    return merge({part: {"name": ""} for part in unnamed if "name" not in table[part]}, table)


def _partial(table: Mapping[str, Any]) -> RunConfig:
    """The data section alone, so that its problems are found beside the others'."""
    return parse({"data": table["data"]} if isinstance(table.get("data"), Mapping) else {})


def _check_names(table: Mapping[str, Any], loss: Any, catalog: Catalog, problems: _Problems) -> None:
    """Check the components that a broken configuration mentions: their problems belong to the same message."""
    wanted: list[tuple[str, Any, Any, str]] = []
    for kind in ("attack", "objective"):
        section = table.get(kind)
        if isinstance(section, Mapping):
            name = section.get("name") or getattr(loss, "defaults", {}).get(kind)
            wanted.append((kind, name, {k: v for k, v in section.items() if k != "name"}, kind))
    student = table.get("student")
    if isinstance(student, Mapping):
        options = {k: v for k, v in student.items() if k not in ("model", "conversions", "normalize")}
        wanted.append(("model", student.get("model"), options, "student"))
        wanted += _named("student", student.get("conversions"), "student.conversions")
    for kind in ("scheduler", "augment", "extension"):
        wanted += _named(kind, table.get(f"{kind}s"), f"{kind}s")
    evaluate = table.get("evaluate")
    if isinstance(evaluate, Mapping) and isinstance(evaluate.get("attacks"), Sequence):
        wanted += [("attack", name, {}, "evaluate.attacks") for name in evaluate["attacks"]]
    for kind, name, options, where in wanted:
        if isinstance(name, str) and isinstance(options, Mapping):
            problems.catch(
                lambda kind=kind, name=name, options=options, where=where: catalog.create(kind, name, options, where)
            )


def _named(kind: str, tables: Any, where: str) -> list[tuple[str, Any, Any, str]]:
    """The components of a section whose keys are their names."""
    found = tables.items() if isinstance(tables, Mapping) else ()
    return [(kind, name, options, f"{where}.{name}") for name, options in found]

"""From a table of settings to a Plan: every name looked up, every option checked, all problems reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from rkd.core.errors import ConfigError, DataError, RkdError
from rkd.core.interfaces import Attack
from rkd.core.step import AttackPlan
from rkd.core.traits import LossTraits, declared, traits_of
from rkd.core.types import ThreatModel
from rkd.data.dataset import Dataset, part_of, real_images
from rkd.evaluation.threat import unfit_radius
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import Catalog, companion_words
from rkd.registry.config import AttackConfig, Component, RunConfig, parse, section, sound
from rkd.registry.defaults import data_defaults, method_defaults, name_of, named_attacks, with_names
from rkd.registry.hooks import HasParts
from rkd.registry.losses import create_loss, loss_class, loss_options
from rkd.registry.options import plain, values_of
from rkd.registry.recipes import merge
from rkd.storage.remote import Messages

from .nets import check_fits, from_sources, settle
from .objects.parts import ModuleModel
from .plan import Plan
from .preparing.teachers import read_reference, teacher_references


class _Problems:
    """Collects the problems of a configuration instead of stopping at the first."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, problem: str) -> None:
        self.messages.append(problem)

    def catch(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """`make(*arguments)`, or None after noting its problems."""
        try:
            return make(*arguments)
        except ConfigError as error:
            self.messages += error.problems
        except RkdError as error:
            self.add(str(error))
        return None

    def stop(self) -> None:
        if self.messages:
            raise ConfigError(list(dict.fromkeys(self.messages)))


def create_attack(name: str, options: Mapping[str, Any], where: str, resolver: Resolver) -> Attack:
    """An attack with checked options and all its parts. Raises ConfigError, UnknownName."""
    attack = resolver.catalog.create("attack", name, options, where)
    if isinstance(attack, HasParts):
        try:
            attack.assemble(resolver)
        except RkdError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            raise ConfigError([f"{where}: {problem}" for problem in problems]) from None
    return attack


class Resolver:
    """What options of an attack only name, other nets and attacks, for one configuration: implements
    `rkd.core.interfaces.Parts`. `notes`: what the user should know of how they were resolved."""

    def __init__(self, catalog: Catalog, data: Dataset) -> None:
        self.catalog = catalog
        self.data = data
        self.notes: list[str] = []
        self._nets: dict[tuple[str, str, str], nn.Module] = {}

    def attack(self, name: str, options: Mapping[str, Any] | None = None) -> Attack:
        return create_attack(name, options or {}, name, self)

    def net(self, reference: str, normalize: str = "auto", options: Mapping[str, Any] | None = None) -> nn.Module:
        asked = (reference, normalize, str(options or {}))
        if asked not in self._nets:
            self._nets[asked] = self._load(self._read(reference, options or {}), normalize)
        return self._nets[asked]

    def _load(self, reference: TeacherReference, choice: str) -> nn.Module:
        text = reference.text
        net = from_sources(reference, self.data, self.catalog, told=Messages(self.notes.append))
        if net is None:
            problem = "is no net with weights" if reference.model else "is not the folder of a finished run"
            raise RkdError(f"{text!r} {problem}; give a run's folder, such as runs/my-run, or MODEL@WEIGHTS")
        net = net.eval().requires_grad_(False)
        check_fits(net, f"the net {text!r}", self.data)
        self.notes += settle(net, reference, choice, self.data, "normalize").notes
        return net

    def _read(self, text: str, options: Mapping[str, Any]) -> TeacherReference:
        known = text.startswith("zoo:")
        if text and not known and "@" not in text and ("/" in text or text not in self.catalog.entries["model"]):
            return TeacherReference(text, "source")
        return read_reference(text, "source", "model", self.catalog, options)


def resolve(table: Mapping[str, Any], catalog: Catalog) -> Plan:
    """Fill a configuration with the customs of its data set and method, check all of it, instantiate the components.

    Order: the schema's defaults < the data set's < the method's < `table`. Raises ConfigError.
    """
    problems = _Problems()
    table = problems.catch(named_attacks, table, catalog) or table
    first = problems.catch(parse, with_names(table))
    if first is None:
        table = sound(table)  # what has not even the form of its section is told already
    data = problems.catch(_load_data, first, table, catalog)
    name = name_of(table.get("loss")) or "mtard-anl"
    given = table.get("loss")
    options = {k: v for k, v in given.items() if k != "name"} if isinstance(given, Mapping) else {}
    loss = problems.catch(create_loss, catalog, name, options)
    if loss is None:  # with wrong options its class still says what belongs to the method
        loss = problems.catch(loss_class, catalog, name)
    if data is None or loss is None or first is None:
        _check_names(table, loss, catalog, problems)
        problems.stop()
    method = problems.catch(method_defaults, loss, table, catalog) or {}
    table = merge(data_defaults(data.defaults, method, table), method, table)
    table.setdefault("loss", {})
    table["loss"]["name"] = name
    table["companions"] = problems.catch(_companions, table, loss) or {}
    for part in ("attack", "objective"):
        if isinstance(table.get(part), Mapping) and "name" not in table[part]:
            given_options = ", ".join(f"{part}.{option}" for option in table[part])
            problems.add(f"{given_options}: the loss {name!r} runs no attack, so there is nothing to set")
            del table[part]
    config = problems.catch(parse, table)
    if config is None:
        problems.stop()

    if 2 * config.grad_accumulation > config.batch_size:
        problems.add(
            f"grad_accumulation: {config.grad_accumulation} parts of a batch of {config.batch_size} have fewer than "
            f"two images each; at most {config.batch_size // 2} are possible"
        )
    whole = real_images(data.train)
    data = problems.catch(_limited, data, config) or data
    data = problems.catch(_with_threat, data, config) or data
    attacks = {}
    resolver = Resolver(catalog, data)
    if (count := real_images(data.train)) < whole:
        resolver.notes.append(f"{count:,} of the {whole:,} training images, of each class its share (data.limit_train)")
    if config.attack:
        attacks["adv"] = _plan(config.attack, config.objective, resolver, problems)
    elif config.objective:
        problems.add(f"objective: the loss {name!r} runs no attack that could maximise it")
    for view, attack in config.attacks.items():
        attacks[view] = problems.catch(_view_plan, attack, f"attacks.{view}", resolver)
    schedulers = _components("scheduler", config.schedulers, catalog, problems)
    augments = _components("augment", config.augments, catalog, problems)
    extensions = _components("extension", config.extensions, catalog, problems)
    trackers = _components("tracker", config.trackers, catalog, problems)
    conversions = _components("student", config.student.conversions, catalog, problems)
    problems.catch(catalog.create, "model", config.student.model, config.student.options, "student")
    teachers = problems.catch(teacher_references, config, loss, data, catalog) or []
    for companion, wanted in config.companions.items():
        made = problems.catch(catalog.create, "model", wanted.model, wanted.options, f"companions.{companion}")
        if isinstance(made, ModuleModel):
            problems.add(
                f"companions.{companion}: it needs weights of its own, and a copy of the student's module has the "
                f"same; choose a model by name (companions={{'{companion}': {{'model': 'resnet20'}}}}), or give the "
                "student as a function (shape, classes) -> module"
            )
        _components("student", wanted.conversions, catalog, problems)
    if config.preparation_epochs and not any(teacher.model and not teacher.weights for teacher in teachers):
        problems.add("preparation_epochs: no teacher of this run is prepared, so there is nothing to set")
    evaluation = _evaluation(config, data, resolver, problems)
    validation = _validation(config, catalog, problems)
    problems.stop()
    _fill_in(config, loss, attacks, schedulers, augments, extensions, trackers, conversions, catalog)
    return Plan(
        config, data, loss, attacks, schedulers, list(augments.values()), extensions, trackers, teachers, evaluation,
        validation, resolver.notes,
    )  # fmt: skip


def _companions(table: Mapping[str, Any], loss: Any) -> dict[str, Any]:
    """The tables of companions that get an architecture: the student's without its conversions, unless another is
    given. Raises ConfigError."""
    given = table.get("companions") or {}
    declarations = declared(loss, LossTraits).companions
    own = [name for name, one in declarations.items() if one.of == "student" and one.follows is None]
    if strange := [name for name in given if name not in own]:
        words = companion_words(declarations)
        known = f"its companions with an architecture to choose: {', '.join(own) or 'none'}"
        raise ConfigError([
            f"companions.{name}: there is no architecture to choose: {words[name]}" if name in declarations
            else f"companions.{name}: the loss {name_of(table['loss'])!r} has none; {known}" for name in strange
        ])  # fmt: skip
    others = ("weights", "normalize", "conversions")  # auxiliary norms need views that a companion may never learn
    same = {key: value for key, value in table.get("student", {}).items() if key not in others}
    return {name: wanted if "model" in (wanted := given.get(name, {})) else merge(same, wanted) for name in own}


def evaluation_batch(config: RunConfig) -> int:
    """Images of a batch of the evaluation, unless given: 256, or twice those that the training computes at once if that
    is less, so that who takes smaller batches to save memory is not caught out at the end."""
    return min(256, max(16, 2 * -(-config.batch_size // config.grad_accumulation)))


def load_data(config: RunConfig, catalog: Catalog) -> Dataset:
    """The data set of a configuration."""
    source = catalog.create("dataset", config.data.name, config.data.options, "data")
    try:
        return source()
    except MemoryError:
        raise DataError(
            f"the images of {config.data.name} do not fit into memory. Batch by batch are read: a folder of images "
            "(imagefolder:PATH with --set data.memory_mib=0), and uint8 images in a file of numpy.savez (npz:PATH)"
        ) from None


def _load_data(config: RunConfig | None, table: Mapping[str, Any], catalog: Catalog) -> Dataset:
    """The data set; of a broken configuration its data section alone, so that its problems show beside the others'."""
    if config is None:
        config = parse({"data": table["data"]} if isinstance(table.get("data"), Mapping) else {})
    return load_data(config, catalog)


def _plan(attack: Any, objective: Any, resolver: Resolver, problems: _Problems) -> AttackPlan:
    search = problems.catch(create_attack, attack.name, attack.options, "attack", resolver)
    goal = objective.name if objective else traits_of(search).objective
    options = objective.options if objective else {}
    _tell_ignored(search, attack.name, goal, "objective", resolver)
    return AttackPlan(search, problems.catch(resolver.catalog.create, "objective", goal, options, "objective"))


def _view_plan(attack: AttackConfig, where: str, resolver: Resolver) -> AttackPlan:
    search = create_attack(attack.name, attack.options, where, resolver)
    goal: Any = attack.objective or traits_of(search).objective
    _tell_ignored(search, attack.name, goal, f"{where}.objective", resolver)
    return AttackPlan(search, resolver.catalog.create("objective", goal))


def _tell_ignored(search: Any, name: str, goal: str, where: str, resolver: Resolver) -> None:
    traits = traits_of(search)
    if traits.own_objective and goal != traits.objective:
        resolver.notes.append(f"{where}: the attack {name} has a loss of its own, so that {goal} makes no difference")


def _components(kind: str, tables: Mapping[str, Any], catalog: Catalog, problems: _Problems) -> dict[str, Any]:
    return {
        name: problems.catch(catalog.create, kind, name, options, f"{kind}s.{name}")
        for name, options in tables.items()
        if options is not False
    }


def _evaluation(config: RunConfig, data: Dataset, resolver: Resolver, problems: _Problems) -> dict[str, AttackPlan]:
    rules = config.evaluate
    plans = {}
    for name in rules.attacks:
        where = f"evaluate.options.{name}"
        attack = problems.catch(section, AttackConfig, {**rules.options.get(name, {}), "name": name}, where)
        plans[name] = attack and problems.catch(_view_plan, attack, where, resolver)
    strangers = [name for name in rules.options if name not in plans]
    problems.messages += [f"evaluate.options.{name}: {name!r} is not among evaluate.attacks" for name in strangers]
    if rules.curve and None not in plans.values() and not bounded(plans):
        problems.add(
            "evaluate.curve: an accuracy against eps needs an attack that keeps to a ball; "
            f"there is {', '.join(plans) or 'none'} among evaluate.attacks"
        )
    problems.messages += [f"evaluate.curve: {unfit}" for eps in rules.curve
                          if eps and (unfit := unfit_radius(data.threat.norm, eps))]  # fmt: skip
    if rules.limit and rules.limit > len(data.test):
        problems.add(f"evaluate.limit: {rules.limit} is above the {len(data.test)} test images of {data.name}")
    return plans


def bounded(plans: Mapping[str, AttackPlan]) -> list[str]:
    """The attacks that keep to a ball."""
    return [name for name, plan in plans.items() if traits_of(plan.attack).bounded]


def _validation(config: RunConfig, catalog: Catalog, problems: _Problems) -> AttackPlan | None:
    rules = config.validate_
    if not (config.data.validation or rules.on == "test"):
        return None
    if not rules.steps:
        if rules.select in ("robust", "w-robust"):
            problems.add(
                f"validate.select: {rules.select} needs the accuracy under attack, and with validate.steps = 0 the "
                "validation runs no attack; type --set validate.select=clean (or last), or give steps"
            )
        return None
    search = problems.catch(catalog.create, "attack", "pgd", {"steps": rules.steps, "start": "uniform"}, "validate")
    return AttackPlan(search, problems.catch(catalog.create, "objective", "ce"))


def _limited(data: Dataset, config: RunConfig) -> Dataset:
    wish, whole, classes = config.data.limit_train, real_images(data.train), len(data.classes)
    if wish is None:
        return data
    count = round(wish * whole) if wish < 1 else int(wish)
    if count > whole:
        raise ConfigError(f"data.limit_train: {count:,} is above the {whole:,} training images of {data.name}")
    if count < classes:
        share = f" ({wish:g} of {whole:,})" if wish < 1 else ""
        raise ConfigError(f"data.limit_train: {count:,}{share} is below the {classes} classes of {data.name}")
    if count == whole:
        return data
    return replace(data, train=part_of(data.train, count))  # its fingerprint stays: the test images are the same


def _with_threat(data: Dataset, config: RunConfig) -> Dataset:
    wish = config.threat
    threat: ThreatModel = data.threat
    if wish.norm not in (None, threat.norm) and wish.eps is None:
        raise ConfigError(f"threat.eps: an {wish.norm} radius must be given, {data.name}'s custom is {threat.norm}")
    if wish.eps is not None:
        threat = threat.with_eps(wish.eps)
    threat = replace(threat, norm=wish.norm or threat.norm, step_size=wish.step_size or threat.step_size)
    if unfit := unfit_radius(threat.norm, threat.eps, data.shape):
        raise ConfigError(f"threat.eps: {unfit}")
    return replace(data, threat=threat)


def _fill_in(
    config: RunConfig, loss: Any, attacks: Mapping[str, AttackPlan], schedulers: Mapping[str, Any],
    augments: Mapping[str, Any], extensions: Mapping[str, Any], trackers: Mapping[str, Any],
    conversions: Mapping[str, Any], catalog: Catalog,
) -> None:  # fmt: skip
    """Write every option's value into the configuration: a run's config.toml holds no hidden defaults."""
    config.loss.set_options(loss_options(loss))
    if config.attack:
        config.attack.set_options(values_of(attacks["adv"].attack))
        config.objective = config.objective or Component(name=traits_of(attacks["adv"].attack).objective)
        config.objective.set_options(values_of(attacks["adv"].objective))
    for view, attack in config.attacks.items():
        attack.set_options(values_of(attacks[view].attack))
    config.schedulers = _all_options(config.schedulers, schedulers)
    config.augments = _all_options(config.augments, augments)
    config.extensions = _all_options(config.extensions, extensions)
    config.trackers = _all_options(config.trackers, trackers)
    config.student.conversions = _all_options(config.student.conversions, conversions)
    for net in (config.student, *config.companions.values()):
        entry = catalog.find("model", net.model)
        net.set_options(values_of(catalog.create("model", net.model, net.options, "student"), entry.fixed))
    config.optimizer.schedule = plain(config.optimizer.schedule)
    config.evaluate.batch_size = config.evaluate.batch_size or evaluation_batch(config)


def _all_options(section: Mapping[str, Any], instances: Mapping[str, Any]) -> dict[str, Any]:
    # What was taken out stays named: otherwise the method's own part would come back when the run is repeated.
    return {name: False if given is False else values_of(instances[name]) for name, given in section.items()}


def check_names(table: Mapping[str, Any], catalog: Catalog) -> None:
    """What `resolve` says of a configuration without a look at its data: sections, names, options. Raises
    ConfigError."""
    problems = _Problems()
    table = problems.catch(named_attacks, table, catalog) or table
    problems.catch(parse, with_names(table))
    table = sound(table)
    section = table.get("loss")
    options = {k: v for k, v in section.items() if k != "name"} if isinstance(section, Mapping) else {}
    loss = problems.catch(create_loss, catalog, name_of(section) or "mtard-anl", options)
    _check_names(table, loss, catalog, problems)
    problems.stop()


def _check_names(table: Mapping[str, Any], loss: Any, catalog: Catalog, problems: _Problems) -> None:
    """Check the components that a broken configuration mentions: their problems belong to the same message."""
    wanted: list[tuple[str, Any, Any, str]] = []
    for kind in ("attack", "objective"):
        section = table.get(kind)
        if isinstance(section, Mapping):
            name = section.get("name") or declared(loss, LossTraits).defaults.get(kind)
            wanted.append((kind, name, {k: v for k, v in section.items() if k != "name"}, kind))
    student = table.get("student")
    if isinstance(student, Mapping):
        options = {k: v for k, v in student.items() if k not in ("model", "conversions", "normalize", "weights")}
        wanted.append(("model", student.get("model"), options, "student"))
        wanted += _named("student", student.get("conversions"), "student.conversions")
    for kind in ("scheduler", "augment", "extension", "tracker"):
        wanted += _named(kind, table.get(f"{kind}s"), f"{kind}s")
    evaluate = table.get("evaluate")
    if isinstance(evaluate, Mapping) and isinstance(evaluate.get("attacks"), list):
        wanted += [("attack", name, {}, "evaluate.attacks") for name in evaluate["attacks"]]
    for kind, name, options, where in wanted:
        if isinstance(name, str) and isinstance(options, Mapping):
            problems.catch(catalog.create, kind, name, options, where)


def _named(kind: str, tables: Any, where: str) -> list[tuple[str, Any, Any, str]]:
    """The components of a section whose keys are their names."""
    components = tables.items() if isinstance(tables, Mapping) else ()
    return [(kind, name, options, f"{where}.{name}") for name, options in components]

"""Teachers: which one has which role, loaded from where their reference says, or prepared on demand and cached.

A prepared teacher is an ordinary run in the cache folder (`prepared.py`).
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rkd.core.errors import ConfigError, Refused, RkdError, WeightsError
from rkd.core.traits import LossTraits, declared
from rkd.data.dataset import Dataset
from rkd.distributed.ranks import ALONE, Ranks
from rkd.nets.first_look import answers, doubts, first_images
from rkd.nets.net import Net, NetTeacher
from rkd.nets.sources import TeacherReference
from rkd.nets.weights import SUFFIXES
from rkd.registry.catalog import PYTHON, Catalog
from rkd.registry.config import RunConfig, TeacherConfig, parse
from rkd.registry.recipes import Table, merge, read_recipe
from rkd.storage.remote import is_remote, read_remote
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import did_you_mean

from ..build import choose_device, choose_precision
from ..choosing.zoo import accuracy_notes, zoo_reference
from ..nets import build_net, check_fits, from_sources, settle
from ..plan import Plan, Reporter
from .prepared import TrainRun, is_prepared, place_of_prepared, prepare_into


@dataclass
class ResolvedTeacher:
    """A teacher with its source; `results` are its own run's, where it has one.

    A `missing` one has yet to be prepared (`prepare`): its net is untrained, but of the right architecture.
    """

    teacher: NetTeacher
    reference: TeacherReference
    source: str
    results: Mapping[str, Any] | None = None
    missing: bool = False


LOOKED_AT = 128
"""Training images on which a teacher shows that it is none at chance."""

USUAL_ROLES = ("robust", "clean")
"""Roles of teachers, in order, for a loss that does not declare any."""

ROLE_RECIPES: dict[str, Table] = {
    "robust": {"loss": {"name": "trades"}},
    "clean": {"loss": {"name": "ce"}},
}
"""How a missing teacher is prepared, by role. A loss may bring others in its `prepare`."""


LARGE = 10_000_000
"""Parameters above which a data set's `large` recipe goes on top of its usual one."""


def teacher_references(config: RunConfig, loss: Any, data: Dataset, catalog: Catalog) -> list[TeacherReference]:
    """The teachers in the order of the loss's roles, each with a role. Missing ones get the data set's usual model.
    A table without a reference adds settings to the teacher in its role."""
    added = {t.role: t for t in config.teachers if "reference" not in t.model_fields_set}
    config.teachers = [t for t in config.teachers if "reference" in t.model_fields_set]
    # A loss that does not declare its roles takes what it is given; whatever it then leaves unused is found later.
    traits = declared(loss, LossTraits)
    roles = list(USUAL_ROLES[: len(config.teachers)] if traits.roles is None else traits.roles)
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
    for role in free:
        same = traits.prepare.get(role, {}).get("student") == "same"
        model = config.student.model if same else data.teachers.get(role, {}).get("model")
        if same and catalog.find("model", config.student.model).plugin.distribution == PYTHON:
            model = None  # of Python's nets none is prepared, see `_load`
        if not model:
            raise ConfigError(
                f"teachers: the loss {config.loss.name!r} needs a teacher in the role {role!r}; "
                f"type --teacher {role}=MODEL@WEIGHTS, --teacher {role}=RUN or --teacher {role}=MODEL (from Python: "
                f"teachers={{'{role}': net}})"
            )
        config.teachers.append(
            TeacherConfig(reference=model, role=role, options=config.student.options if same else {})
        )
    for teacher in config.teachers:
        more = added.pop(teacher.role, None)
        for setting in more.model_fields_set - {"role"} if more else ():
            setattr(teacher, setting, getattr(more, setting))
    if added:
        known = ", ".join(str(t.role) for t in config.teachers) or "none"
        raise ConfigError(f"teachers.{next(iter(added))}: there is no such teacher; the roles of the teachers: {known}")
    order = {role: place for place, role in enumerate(roles)}
    config.teachers.sort(key=lambda t: order.get(t.role or "", 0))
    return [
        read_reference(
            t.reference, t.role or "", f"teacher {t.role}", catalog, t.options, strip=t.strip, classes=tuple(t.classes)
        )
        for t in config.teachers
    ]


def read_reference(
    text: str, role: str, where: str, catalog: Catalog, options: Mapping[str, Any], **more: Any
) -> TeacherReference:
    """Read MODEL, MODEL@FILE[#KEY], MODEL@ADDRESS, zoo:NAME, a folder, or whatever an installed source makes of it.
    `where`: the section of the model's options; `more`: other fields.

    Raises ConfigError, UnknownName for a model that does not exist.
    """
    if os.path.isdir(text):
        return TeacherReference(text, role, options=options, **more)
    if text.startswith("zoo:"):
        return zoo_reference(text, role, catalog, options, more)
    model, at_sign, weights = text.partition("@")
    source, colon, rest = text.partition(":")
    if not model or (at_sign and not weights) or (colon and not rest):
        raise ConfigError(
            f"the reference {text!r} has an empty part; expected MODEL@FILE, MODEL, or a folder (is a variable of the "
            "shell unset?)"
        )
    if colon and source in catalog.entries["teacher"]:
        return TeacherReference(text, role, options=options, **more)
    if not at_sign and ("/" in text or text.endswith((".pt", ".pth", ".safetensors"))) and ":" not in text:
        raise ConfigError(
            f"{text!r} is neither a model nor the folder of a run; weights need their architecture, as in "
            f"{shlex.join(['--teacher', f'{role}=wrn34@{text}'])}"
        )
    if is_remote(text):
        raise ConfigError(
            f"{text!r} is an address; weights need their architecture, as in --teacher {role}=wrn34@{text}"
        )
    if text in catalog.entries["zoo"] and not at_sign:
        raise ConfigError(f"{text!r} is a teacher of the catalogue: type --teacher {role}=zoo:{text}")
    catalog.create("model", model, options, where)
    if is_remote(weights):  # what is wrong with an address is told before anything is fetched
        name = read_remote(weights).name
        if not name.endswith(SUFFIXES):
            raise ConfigError(f"{weights} ends with {name!r}; weights are read from files with {', '.join(SUFFIXES)}")
    return TeacherReference(text, role, model, weights or None, options, **more)


def load_teachers(plan: Plan, catalog: Catalog, reporter: Reporter, ranks: Ranks = ALONE) -> list[ResolvedTeacher]:
    """All teachers of a plan, on the device. Nothing is prepared yet. Raises RkdError, WeightsError."""
    return [_load(reference, plan, catalog, reporter, ranks) for reference in plan.teachers]


def _load(
    reference: TeacherReference, plan: Plan, catalog: Catalog, reporter: Reporter, ranks: Ranks = ALONE
) -> ResolvedTeacher:
    reporter.doing(f"loading the {reference.role} teacher {reference.text}")
    config = _config(reference, plan)
    missing = False
    net = from_sources(reference, plan.data, catalog, told=reporter)
    source, results = reference.text, None
    if net is None:
        if reference.weights or reference.model is None:
            raise RkdError(f"no teacher source understands {reference.text!r}")
        if catalog.find("model", reference.model).plugin.distribution == PYTHON:
            raise Refused(
                f"the {reference.role} teacher {reference.model} cannot be prepared: what is prepared is kept under "
                "its name, which says nothing of a net that Python code gave. Train it (rkd.train) and give "
                f"its module: teachers={{'{reference.role}': net}}"
            )
        net = build_net(reference.model, reference.options, plan.data, catalog)
        folder = _place(_recipe(reference, config.train, plan, net), reference, plan)
        # Another job may put it there at any moment: one process looks for all.
        missing = ranks.from_first(not is_prepared(folder))
        source = "not prepared yet"
        if not missing:
            prepared = from_sources(TeacherReference(str(folder), reference.role), plan.data, catalog, "run")
            assert prepared is not None, "it is the folder of a finished run"
            net = prepared
            source, results = f"prepared ({folder})", _results(RunFolder.open(folder), plan)
    device = choose_device(plan.config.device)
    net = net.to(device)
    who, setting = f"the {reference.role} teacher {reference.text}", f"teachers.{reference.role}"
    try:
        check_fits(net, who, plan.data, device)
    except Refused as error:
        raise WeightsError(f"{error} (--set {setting}.classes=[...] picks outputs of a net with others)") from None
    settled = settle(net, reference, config.normalize, plan.data, f"--set {setting}.normalize")
    for note in settled.notes:
        reporter.message(note)
    if isinstance(net, Net):
        net.autocast = choose_precision(plan.config.precision, device)
    if not missing:
        said = settled.answers or answers(net, first_images(plan.data.train, device, LOOKED_AT))
        for note in accuracy_notes(net, reference, plan.data, catalog, device):
            reporter.message(note)
        own = folder if source.startswith("prepared") else Path(reference.text)
        if doubt := doubts(said, who, plan.data.classes, _stated(own), setting, reference.classes):
            reporter.warning(doubt)
    return ResolvedTeacher(NetTeacher(net, reference.role), reference, source, results, missing)


def _stated(folder: Path) -> float | None:
    """The clean accuracy that a run's card says; None for what is no run."""
    card = RunFolder(folder).card
    results = RunFolder(folder).read_json(card).get("results") if folder.is_dir() and card.is_file() else None
    clean = results.get("clean") if isinstance(results, Mapping) else None
    return clean if isinstance(clean, float) and 0 <= clean <= 1 else None


def _results(folder: RunFolder, plan: Plan) -> Mapping[str, Any] | None:
    """The results of the teacher's own run, if it was evaluated as this plan asks for."""
    own, asked = parse(read_recipe(folder.config)).evaluate, plan.config.evaluate
    same = (own.attacks, own.limit, own.options) == (asked.attacks, asked.limit, asked.options)
    return folder.read_json(folder.evaluation) if same else None


def _config(reference: TeacherReference, plan: Plan) -> TeacherConfig:
    return next(t for t in plan.config.teachers if t.role == reference.role)


def prepare(
    missing: ResolvedTeacher, plan: Plan, catalog: Catalog, reporter: Reporter, train: TrainRun,
    dry_run: bool = False, ranks: Ranks = ALONE,
) -> ResolvedTeacher:  # fmt: skip
    """Train a missing teacher into the cache, by `train`. A dry run only tells the cost of that. Raises RkdError."""
    reference = missing.reference
    table = _recipe(reference, _config(reference, plan).train, plan, missing.teacher.net)
    folder = _place(table, reference, plan)

    def run(path: Path, resume: bool) -> None:
        train(
            table, catalog, path, reporter, title=f"{reference.role} teacher {reference.model}", dry_run=dry_run,
            resume=resume, limit_minutes=plan.config.prepare_minutes,
            how_to_avoid=f"give weights (--teacher {reference.role}={reference.model}@FILE) or a finished run "
            f"(--teacher {reference.role}=RUN), fewer epochs (--teacher-epochs N), choose a smaller model, or allow it "
            "with --set prepare_minutes=MINUTES", ranks=ranks,
        )  # fmt: skip

    if dry_run:
        run(folder, False)
        return missing
    own = f"--set teachers.{reference.role}.train"
    how = f"its own settings are {own}.KEY=VALUE, such as {own}.optimizer.lr=0.01"
    prepare_into(folder, f"the {reference.role} teacher", run, reporter, ranks, how)
    return _load(reference, plan, catalog, reporter, ranks)


def _place(table: Table, reference: TeacherReference, plan: Plan) -> Path:
    return place_of_prepared(table, "teachers", (reference.role, reference.model), plan.data)


def _recipe(reference: TeacherReference, train: Mapping[str, Any], plan: Plan, net: torch.nn.Module) -> Table:
    """The configuration that prepares a teacher: the run's data, attacker and seed, the role's loss.

    A data set may ask for less of large nets: they need fewer epochs, and each costs more.
    """
    config = plan.config
    prepare = dict(declared(plan.loss, LossTraits).prepare.get(reference.role, {}))
    prepare.pop("student", None)
    if not prepare and reference.role not in ROLE_RECIPES:
        raise RkdError(
            f"no recipe prepares a teacher in the role {reference.role!r} (there is {', '.join(ROLE_RECIPES)}); "
            f"give weights: --teacher {reference.role}={reference.model}@FILE"
        )
    base = {
        "seed": config.seed,
        "device": config.device,
        "precision": config.precision,
        "data": config.data.model_dump(),
        "threat": config.threat.model_dump(exclude_none=True),
        "student": {**reference.options, "model": reference.model},
        "evaluate": config.evaluate.model_dump(exclude_none=True),
        "checkpoint": config.checkpoint.model_dump(),
    }
    if config.auto_batch:
        base["auto_batch"] = True
    if config.grad_accumulation > 1:  # a batch that is too large for the student's training is so for a teacher's
        base["grad_accumulation"] = config.grad_accumulation
    custom = plan.data.teachers.get(reference.role, {})
    large = sum(p.numel() for p in net.parameters()) > LARGE
    recipes = [custom.get("recipe", {}), custom.get("large", {}) if large else {}]
    epochs = {"epochs": config.preparation_epochs} if config.preparation_epochs else {}
    return merge(ROLE_RECIPES.get(reference.role, {}), *recipes, prepare, base, train, epochs)

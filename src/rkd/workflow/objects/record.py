"""Which parts of a run Python code gave by hand: its `config.toml` can only name them, and its manifest says so."""

import inspect
from collections.abc import Iterator
from typing import Any

from rkd.registry.catalog import OBJECT, PYTHON, Catalog, Given
from rkd.registry.config import RunConfig
from rkd.registry.losses import names_of

from .parts import SOURCE, GivenData, ModuleModel, ModuleTeachers


def given_parts(config: RunConfig, catalog: Catalog) -> dict[str, dict[str, str]]:
    """By setting, the parts that no plugin provides: kind, name, and class or function with its module."""
    found = {}
    for setting, kind, name in _components(config):
        entry = catalog.find(kind, SOURCE if kind == "teacher" else name)
        if entry.plugin.distribution != PYTHON:
            continue
        value: Any = entry.component.value if isinstance(entry.component, Given) else entry.component
        if isinstance(value, ModuleTeachers):
            value = value.modules[name.removeprefix(OBJECT)]
        elif isinstance(value, ModuleModel):
            value = value.module
        elif isinstance(value, GivenData):
            value = value.dataset
        owner = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
        found[setting] = {"kind": kind, "name": name, "class": owner.__qualname__, "module": owner.__module__}
    return found


def _components(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Setting, kind and name of each component of a run."""
    yield "data", "dataset", config.data.name
    yield "student", "model", config.student.model
    yield from (("loss", "loss", name) for name in names_of(config.loss.name))
    if config.attack:
        yield "attack", "attack", config.attack.name
    if config.objective:
        yield "objective", "objective", config.objective.name
    yield from ((f"attacks.{view}", "attack", attack.name) for view, attack in config.attacks.items())
    yield from ((f"companions.{name}", "model", net.model) for name, net in config.companions.items())
    for kind, where, section in (
        ("scheduler", "schedulers", config.schedulers), ("augment", "augments", config.augments),
        ("extension", "extensions", config.extensions), ("tracker", "trackers", config.trackers),
        ("student", "student.conversions", config.student.conversions),
    ):  # fmt: skip
        yield from ((f"{where}.{name}", kind, name) for name, options in section.items() if options is not False)
    yield from ((f"evaluate.{name}", "attack", name) for name in config.evaluate.attacks)
    given = (teacher for teacher in config.teachers if teacher.reference.startswith(OBJECT))
    yield from ((f"teachers.{teacher.role}", "teacher", teacher.reference) for teacher in given)

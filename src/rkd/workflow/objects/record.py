"""Which parts of a run Python code gave by hand, which its `config.toml` can only name: what the manifest says of them,
and whether a run that goes on has the same again."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from rkd.core.errors import RkdError
from rkd.evaluation.journal import fingerprint
from rkd.registry.catalog import OBJECT, PYTHON, Catalog, Given
from rkd.registry.config import RunConfig
from rkd.registry.losses import names_of

from .parts import SOURCE, GivenData, ModuleModel, ModuleTeachers


def given_parts(config: RunConfig, catalog: Catalog) -> dict[str, dict[str, str]]:
    """By setting, the parts that no plugin provides: kind, name, class or function with its module, and of nets a hash
    of their weights' names and shapes, of data that of its images and labels."""
    found = {}
    for setting, kind, name in _components(config):
        entry = catalog.find(kind, name)
        if entry.plugin.distribution != PYTHON:
            continue
        value: Any = entry.component.value if isinstance(entry.component, Given) else entry.component
        form = ""
        if isinstance(value, ModuleTeachers):
            role = setting.removeprefix("teachers.")
            value, name = value.modules[role], f"{OBJECT}{role}"
        if isinstance(value, ModuleModel):
            value = value.module
        if isinstance(value, GivenData):
            value, form = value.dataset, value.dataset.fingerprint
        if isinstance(value, nn.Module):
            form = fingerprint(*[(key, tuple(weight.shape)) for key, weight in value.state_dict().items()])
        owner = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
        found[setting] = {"kind": kind, "name": name, "class": owner.__qualname__, "module": owner.__module__}
        if form:
            found[setting]["form"] = form
    return found


def check_same(earlier: Any, now: Mapping[str, Mapping[str, str]]) -> None:
    """Raise RkdError for a part of another class, or a net of another shape, or other data, than the run began with.
    (The options of other objects are in the configuration.)"""
    for setting, part in now.items():
        before = earlier.get(setting) if isinstance(earlier, Mapping) else None
        if not isinstance(before, Mapping):
            continue
        if before.get("class") != part["class"]:
            raise RkdError(
                f"{setting}: this run began with an object of the class {before.get('class')}, and goes on with the "
                f"same alone; given is {part['class']}"
            )
        if before.get("form") != part.get("form"):
            other = "other images or labels, or in another order" if part["kind"] == "dataset" else (
                f"a {part['class']} whose weights have other names or shapes")  # fmt: skip
            raise RkdError(f"{setting}: this run began with {other}: make it as it was made then, or start a new run")


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
    yield from ((f"teachers.{t.role}", "teacher", SOURCE) for t in config.teachers if t.reference.startswith(OBJECT))

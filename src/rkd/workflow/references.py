"""Reading `--teacher`: which teacher has which role, and what its reference means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rkd.core.errors import ConfigError, did_you_mean
from rkd.data.dataset import Dataset
from rkd.nets.sources import TeacherReference

from ..registry.catalog import Catalog
from ..registry.config import RunConfig, TeacherConfig

USUAL_ROLES = ("robust", "clean")


def teacher_references(config: RunConfig, loss: Any, data: Dataset, catalog: Catalog) -> list[TeacherReference]:
    """The teachers in the order of the loss's roles, each with a role. Missing ones get the data set's usual model."""
    # A loss that does not declare its roles takes what it is given; whatever it then leaves unused is found later.
    roles = list(getattr(loss, "roles", USUAL_ROLES[: len(config.teachers)]))
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

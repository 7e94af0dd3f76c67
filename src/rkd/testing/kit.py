"""All checks for whatever a plugin provides: each component goes through those of its kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rkd.core.errors import ConfigError, RkdError
from rkd.core.traits import LossTraits, declared, traits_of
from rkd.core.types import Schedule
from rkd.registry.catalog import Catalog, Entry
from rkd.registry.hooks import Family
from rkd.registry.options import describe

from .attack import check_attack, check_objective
from .catalog import check_entry, check_method
from .data import check_augment, check_corruption, check_dataset
from .nets import check_conversion, check_model
from .outputs import check_exporter, check_teacher_source, check_tracker
from .tiny import OneStep, TinyParts, tiny_run
from .train import check_extension, check_loss, check_scheduler, check_trains


@dataclass(frozen=True)
class Verdict:
    """What became of a component: `passed`; `failed`, with the promise that it breaks; `skipped`, with the reason."""

    entry: Entry
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""


_ASKS: dict[str, type[RkdError]] = {"exporter": RkdError, "tracker": RkdError}
"""By kind, errors of a component that ask its user for something (an option, a package, a login): it cannot be checked
here. Of other kinds those of the configuration."""


class _Skip(Exception):
    pass


def check_plugin(catalog: Catalog, distribution: str, kind: str | None = None) -> Iterator[Verdict]:
    """A verdict on each component of `catalog` that comes from `distribution` (`file` for those of local files), or on
    those of one kind."""
    for entry in catalog.all():
        if entry.plugin.distribution == distribution and kind in (None, entry.kind):
            try:
                check_component(catalog, entry)
            except _Skip as reason:
                yield Verdict(entry, "skipped", str(reason))
            except (AssertionError, RkdError) as problem:
                asks = isinstance(problem.__cause__, _ASKS.get(entry.kind, ConfigError))
                yield Verdict(entry, "skipped" if asks else "failed", str(problem.__cause__ if asks else problem))
            except Exception as error:  # the component's own code
                yield Verdict(entry, "failed", f"{type(error).__name__}: {error}")
            else:
                yield Verdict(entry, "passed")


def check_component(catalog: Catalog, entry: Entry) -> None:
    """Raise AssertionError, with a sentence that says which, unless the component keeps the promises of its kind, made
    with its default options (of a family: its first example)."""
    check_entry(entry)
    if entry.kind == "zoo":
        return
    name = entry.component.examples[0] if isinstance(entry.component, Family) else entry.name
    found = catalog.find(entry.kind, f"{entry.plugin.distribution}/{name}")
    fixed = dict(found.fixed)
    if needed := [option.name for option in describe(found.factory) if option.required and option.name not in fixed]:
        raise _Skip(f"it needs the option {', '.join(needed)}: check it in a test of your own")
    component = TinyParts(catalog).attack(name) if entry.kind == "attack" else found.create({}, entry.kind)
    _CHECKS[entry.kind](catalog, entry.name, component)


def _check_loss(catalog: Catalog, name: str, loss: Any) -> None:
    check_method(catalog, name, cited=False)
    attacked = "attack" in declared(loss, LossTraits).defaults
    check_loss(loss, views=("adv",) if attacked else ())
    check_trains(tiny_run(loss, attack=OneStep() if attacked else None))


def _check_attack(catalog: Catalog, name: str, attack: Any) -> None:
    traits = traits_of(attack)
    free = traits.seeks_nearest or traits.own_objective or traits.black_box
    check_attack(attack, eps=_radius(traits.eps), optimum=0 if free else 0.9, needs_gradient=not traits.black_box)


def _radius(eps: Schedule | None) -> float | None:
    return eps if isinstance(eps, float) else None


def _check_scheduler(catalog: Catalog, name: str, scheduler: Any) -> None:
    check_scheduler(scheduler, terms=_terms(catalog, name))


def _terms(catalog: Catalog, name: str) -> tuple[str, ...]:
    """The terms of the first loss that brings the scheduler along."""
    for each in catalog.names("loss"):
        loss = catalog.create("loss", each)
        brought = declared(loss, LossTraits).defaults.get("scheduler", ())
        if name in ([brought] if isinstance(brought, str) else brought):
            run = tiny_run(loss, attack=OneStep())
            return tuple(loss(run.step(next(iter(run.loader.batches(0))))))
    return ("adv", "clean")


def _check_dataset(catalog: Catalog, name: str, source: Any) -> None:
    try:
        data = source()
    except RkdError as error:  # files that are not here
        raise _Skip(f"its images are not here: {error}") from None
    check_dataset(data)


_CHECKS: dict[str, Callable[[Catalog, str, Any], None]] = {
    "loss": _check_loss,
    "attack": _check_attack,
    "objective": lambda catalog, name, objective: check_objective(objective),
    "scheduler": _check_scheduler,
    "model": lambda catalog, name, model: check_model(model),
    "student": lambda catalog, name, conversion: check_conversion(conversion),
    "teacher": lambda catalog, name, source: check_teacher_source(source),
    "dataset": _check_dataset,
    "augment": lambda catalog, name, augment: check_augment(augment),
    "corruption": lambda catalog, name, corruption: check_corruption(corruption),
    "extension": lambda catalog, name, extension: check_extension(extension),
    "exporter": lambda catalog, name, exporter: check_exporter(exporter),
    "tracker": lambda catalog, name, tracker: check_tracker(tracker),
}

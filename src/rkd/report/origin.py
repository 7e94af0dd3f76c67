"""What was trained from what, for the diagram: images, teachers, the method with its parts, the student."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from rkd.storage.text import attack_name

from .data import RunData
from .values import items, number, percent, plain, radius, setting, shortened, table, text

MOST_CHIPS = 12


@dataclass(frozen=True)
class Box:
    """One box: what it is, its name, a line about it, and short facts."""

    kind: str
    name: str
    line: str = ""
    chips: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    images: Box
    teachers: list[Box]
    method: list[Box]
    student: Box


def origin(run: RunData) -> Origin:
    return Origin(_images(run), _teachers(run), [_loss(run), *_parts(run)], _student(run))


def _images(run: RunData) -> Box:
    data = table(run.config.get("data"))
    augments = [f"+ {name}" for name, options in table(run.config.get("augments")).items() if options is not False]
    validation = number(data.get("validation"), 0, 1)
    held_out = [f"{percent(validation)} % held out to choose the weights"] if validation else []
    limit = number(data.get("limit_train"), 0)
    part = [f"{f'{percent(limit)} %' if limit < 1 else f'{limit:,.0f}'} of the training images"] if limit else []
    return Box("images", run.data or "?", f"threat: {radius(*run.threat)}" if run.threat[1] else "",
               [*part, *held_out, *augments[:MOST_CHIPS]])  # fmt: skip


def _teachers(run: RunData) -> list[Box]:
    if run.teachers:
        found = []
        for net in run.teachers:
            chips = [f"clean {percent(net.clean)} %"] if net.clean is not None else []
            chips += [f"worst case {percent(net.worst_case)} %"] if net.worst_case is not None else []
            chips += [f"normalised: {net.normalization}"] if net.normalization else []
            found.append(Box(f"{net.role} teacher".strip(), net.model or "?", _short_source(net.source), chips))
        return found
    boxes = []
    for value in items(run.config.get("teachers"))[:64]:
        teacher = table(value)
        reference = text(teacher.get("reference"))
        model, _, file = reference.partition("@")
        name = f"{model}@{PurePath(file).name}" if file else PurePath(reference).name
        boxes.append(Box(f"{text(teacher.get('role'))} teacher".strip(), name or "?"))
    return boxes


def _short_source(source: str) -> str:
    """`prepared` for `prepared (/long/path/of/a/cache)`: the path is in the configuration."""
    return shortened(source.partition(" (")[0] if source.startswith("prepared (") else source, 60)


def _loss(run: RunData) -> Box:
    last = next((line for line in reversed(run.history) if any(k.startswith("weight.") for k in line)), {})
    weights = {name.removeprefix("weight."): value for name, value in last.items() if name.startswith("weight.")}
    terms = [f"{value:.3g} × {name}" for name, value in weights.items()]
    line = f"loss = {' + '.join(terms[:6])}{' + …' if len(terms) > 6 else ''}" if terms else ""
    return Box("loss", run.method or "?", line, _chips(table(run.config.get("loss")), {"name", "weights"}))


def _parts(run: RunData) -> Iterable[Box]:
    config = run.config
    goal = text(table(config.get("objective")).get("name"))
    attack = table(config.get("attack"))
    if attack:
        yield _attack("attack", attack, text(attack.get("objective")) or goal)
    for view, options in list(table(config.get("attacks")).items())[:MOST_CHIPS]:
        yield _attack(f"attack for {view}", table(options), text(table(options).get("objective")) or goal)
    for kind in ("scheduler", "extension"):
        for name, options in list(table(config.get(f"{kind}s")).items())[:MOST_CHIPS]:
            if options is not False:
                yield Box(kind, name, "", _chips(table(options)))


def _attack(kind: str, options: Mapping[str, Any], goal: str) -> Box:
    return Box(kind, attack_name(text(options.get("name"))) or "?", f"maximises {goal}" if goal else "",
               _chips(options, {"name", "objective"}))  # fmt: skip


def _student(run: RunData) -> Box:
    student, optimizer = table(run.config.get("student")), table(run.config.get("optimizer"))
    chips = _chips(student, {"model", "conversions", "normalize"})
    parameters = number(run.card.get("parameters"), 0)
    line = f"{parameters:,.0f} parameters" if parameters else ""
    facts = [f"{run.epochs} epochs" if run.epochs else "", text(optimizer.get("name"))]
    rate = number(optimizer.get("lr"))
    facts.append(f"lr {plain(rate)}" if rate is not None else "")
    return Box("student", run.student_name, line, [*chips, *(fact for fact in facts if fact)])


def _chips(options: Mapping[str, Any], without: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """`steps = 10` of each option that has a value."""
    shown = {name: value for name, value in options.items() if name not in without and value not in ({}, [], None, "")}
    chips = [f"{name} = {shortened(setting(name, value), 40)}" for name, value in list(shown.items())[:MOST_CHIPS]]
    return [*chips, "…"] if len(shown) > MOST_CHIPS else chips

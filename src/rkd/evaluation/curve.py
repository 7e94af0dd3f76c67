"""Robust accuracy against the radius."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..core.errors import RkdError
from ..core.step import AttackPlan
from ..core.traits import traits_of
from ..core.types import ThreatModel
from ..data.dataset import Split
from .evaluate import evaluate
from .result import interval
from .samples import EvalSettings
from .threat import unfit_radius


def curve(
    net: nn.Module, split: Split, name: str, plan: AttackPlan, radii: Sequence[float],
    settings: EvalSettings | None = None, distance: Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy under one attack at radius 0 and at each of `radii` (in units of [0, 1] images), in plain values.

    A sample that was fooled at some radius is not attacked again at a larger one, whose ball holds the same adversarial
    image: so the curve never rises, and costs less than as many evaluations. The step size keeps its share of the
    radius. An attack that looks for the nearest image, whatever the radius (`any_radius`), runs only once, and not at
    all where `distance (N,)` is what an evaluation of these samples found by it (`AttackResult.distance`).
    """
    settings = settings or EvalSettings()
    if not traits_of(plan.attack).bounded:
        raise RkdError(f"{name} keeps to no ball: there is no accuracy against eps for it")
    if not radii:
        raise RkdError("a curve needs at least one radius above 0")
    eps_values = [0.0, *sorted(set(radii))]
    plan = AttackPlan(_without_radius(plan.attack), plan.objective)
    settings = replace(settings.plain(), positions=settings.samples(split))
    if traits_of(plan.attack).any_radius:
        if distance is None:
            distance = _distances(net, split, name, plan, settings)
        robust = [distance > eps for eps in eps_values]
    else:
        robust = _robust(net, split, name, plan, eps_values, settings)
    return {
        "attack": name,
        "norm": settings.threat.norm,
        "eps": eps_values,
        "accuracy": [float(right.double().mean()) for right in robust],
        "interval_95": [interval(right) for right in robust],
        "samples": len(robust[0]),
    }


def _robust(
    net: nn.Module, split: Split, name: str, plan: AttackPlan, radii: Sequence[float], settings: EvalSettings
) -> list[Tensor]:
    """Which samples are robust at each radius, `(N,)` bool, by an attack at each. The first radius is 0."""
    positions, threat = settings.samples(split), settings.threat
    right, robust = torch.ones(len(positions), dtype=torch.bool), []
    for eps in radii:
        rows = right.nonzero().squeeze(1)
        if len(rows):
            there = replace(settings, positions=positions[rows], threat=threat.with_eps(eps) if eps else threat)
            result = evaluate(net, split, {name: plan} if eps else {}, there)
            right[rows] = result.worst() if eps else result.clean
        robust.append(right.clone())
    return robust


def _distances(net: nn.Module, split: Split, name: str, plan: AttackPlan, settings: EvalSettings) -> Tensor:
    """How far from each image its nearest adversarial image is, in the threat's norm, `(N,)`: -1 for images that are
    wrong as they are, infinite where nothing fooled the net. One attack, without a ball."""
    attack: Any = plan.attack
    plan = AttackPlan(replace(attack, bounded=False), plan.objective)
    positions, distances = settings.samples(split), []
    done = 0
    for rows in positions.split(settings.batch_size * settings.ranks.size):  # so that few images are kept at a time

        def progress(what: str, count: int, total: int, done: int = done) -> None:
            settings.report(what, done + count, len(positions))

        result = evaluate(
            net, split, {name: plan}, replace(settings, positions=rows, examples=len(rows), progress=progress)
        )
        distance = torch.where(result.clean, torch.inf, -1.0)
        if result.gallery is not None:
            away = ops.image_norm(result.gallery.adversarial - result.gallery.clean, settings.threat.norm)
            kept = result.gallery.rows
            distance[kept] = away.where(~result.attacks[name][kept], torch.inf)
        distances.append(distance)
        done += len(rows)
    return torch.cat(distances)


def usual_radii(threat: ThreatModel) -> list[float]:
    """Parts and multiples of the threat's radius, as far as they mean anything."""
    radii = [share * threat.eps for share in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)]
    if threat.norm in ops.COUNTS:
        radii = sorted({float(round(eps)) for eps in radii})
    return [eps for eps in radii if unfit_radius(threat.norm, eps) is None]


def _without_radius(attack: Any) -> Any:
    """The attack without a radius and a step of its own, which would hold at all points."""
    if not is_dataclass(attack) or isinstance(attack, type):
        return attack
    own = {item.name for item in fields(attack)} & {"eps", "step_size"}
    return replace(attack, **dict.fromkeys(own)) if own else attack

"""Robust accuracy against the radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import RkdError
from ..core.interfaces import traits_of
from ..core.step import AttackPlan
from ..core.types import ThreatModel
from ..data.dataset import Split
from .evaluate import Progress, choose, evaluate
from .measures import interval


def curve(
    net: nn.Module,
    split: Split,
    name: str,
    plan: AttackPlan,
    radii: Sequence[float],
    *,
    threat: ThreatModel,
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy under one attack at radius 0 and at each of `radii` (in units of [0, 1] images), in plain values.

    A sample that fell at some radius is not attacked again at a larger one, whose ball holds the image that felled
    it: so the curve never rises, and costs less than as many evaluations. The step size keeps its share of the radius.
    An attack that looks for the nearest image, whatever the radius (`any_radius`), runs only once.
    """
    if not traits_of(plan.attack).bounded:
        raise RkdError(f"{name} keeps to no ball: there is no accuracy against eps for it")
    if not radii:
        raise RkdError("a curve needs at least one radius above 0")
    eps_values = [0.0, *sorted(set(radii))]
    plan = AttackPlan(_at_any_radius(plan.attack), plan.objective)
    positions = choose(len(split), limit)
    settings: dict[str, Any] = {"classes": classes, "seed": seed, "batch_size": batch_size, "device": device}
    if traits_of(plan.attack).any_radius:
        distance = _distances(net, split, name, plan, positions, threat, progress, settings)
        standing = [distance > eps for eps in eps_values]
    else:
        standing = _standing(net, split, name, plan, positions, eps_values, threat, progress, settings)
    return {
        "attack": name,
        "norm": threat.norm,
        "eps": eps_values,
        "accuracy": [float(right.double().mean()) for right in standing],
        "interval_95": [interval(right) for right in standing],
        "samples": len(positions),
    }


def _standing(
    net: nn.Module, split: Split, name: str, plan: AttackPlan, positions: Tensor, radii: Sequence[float],
    threat: ThreatModel, progress: Progress | None, settings: dict[str, Any],
) -> list[Tensor]:  # fmt: skip
    """Who still stands at each radius, `(N,)` bool: a search at each. The first radius is 0."""
    right, found = torch.ones(len(positions), dtype=torch.bool), []
    for number, eps in enumerate(radii):
        rows = right.nonzero().squeeze(1)
        if len(rows):
            result = evaluate(
                net, split, {name: plan} if number else {}, positions=positions[rows], progress=progress,
                threat=threat.with_eps(eps) if number else threat, **settings,
            )  # fmt: skip
            right[rows] = result.worst() if number else result.clean
        found.append(right.clone())
    return found


def _distances(
    net: nn.Module, split: Split, name: str, plan: AttackPlan, positions: Tensor, threat: ThreatModel,
    progress: Progress | None, settings: dict[str, Any],
) -> Tensor:  # fmt: skip
    """How far from each image the one that fools the net is, in the threat's norm, `(N,)`: -1 for images that are wrong
    as they are, infinite where nothing fooled the net. One search, which keeps to no ball."""
    attack: Any = plan.attack
    plan = AttackPlan(replace(attack, bounded=False), plan.objective)
    found: list[Tensor] = []
    order = math.inf if threat.norm == "Linf" else 2
    for rows in positions.split(settings["batch_size"]):  # so that few images are kept at a time
        done = sum(map(len, found))

        def told(what: str, count: int, total: int, done: int = done) -> None:
            if progress is not None:
                progress(what, done + count, len(positions))

        result = evaluate(
            net, split, {name: plan}, positions=rows, threat=threat, examples=len(rows), progress=told, **settings
        )
        distance = torch.where(result.clean, torch.inf, -1.0)
        if result.gallery is not None:
            away = (result.gallery.adversarial - result.gallery.clean).flatten(1).norm(order, dim=1)
            kept = result.gallery.rows
            distance[kept] = away.where(~result.attacks[name][kept], torch.inf)
        found.append(distance)
    return torch.cat(found)


def usual_radii(threat: ThreatModel) -> list[float]:
    """Parts and multiples of the threat's radius, as far as they mean anything."""
    radii = [share * threat.eps for share in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)]
    return [eps for eps in radii if threat.norm != "Linf" or eps <= 1]


def _at_any_radius(attack: Any) -> Any:
    """The attack without a radius and a step of its own, which would hold at all points."""
    if not is_dataclass(attack) or isinstance(attack, type):
        return attack
    own = {item.name for item in fields(attack)} & {"eps", "step_size"}
    return replace(attack, **dict.fromkeys(own)) if own else attack

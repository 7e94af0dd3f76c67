"""Robust accuracy against the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from .data import Split
from .errors import RkdError
from .evaluate import choose, evaluate
from .measures import interval
from .step import AttackPlan
from .types import ThreatModel


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
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy under one attack at radius 0 and at each of `radii` (in units of [0, 1] images), in plain values.

    A sample that fell at some radius is not attacked again at a larger one, whose ball holds the image that felled
    it: so the curve never rises, and costs less than as many evaluations. The step size keeps its share of the radius.
    """
    if not getattr(plan.attack, "bounded", True):
        raise RkdError(f"{name} keeps to no ball: there is no accuracy against eps for it")
    if not radii:
        raise RkdError("a curve needs at least one radius above 0")
    plan = AttackPlan(_at_any_radius(plan.attack), plan.objective)
    positions = choose(len(split), limit)
    standing, points, intervals = torch.ones(len(positions), dtype=torch.bool), [], []
    for number, eps in enumerate([0.0, *sorted(set(radii))]):
        rows = standing.nonzero().squeeze(1)
        if len(rows):
            result = evaluate(
                net, split, {} if number == 0 else {name: plan}, positions=positions[rows],
                threat=threat.with_eps(eps) if number else threat, classes=classes, seed=seed, batch_size=batch_size,
                device=device, progress=progress,
            )  # fmt: skip
            standing[rows] = result.worst() if number else result.clean
        points.append(float(standing.double().mean()))
        intervals.append(interval(standing))
    eps_values = [0.0, *sorted(set(radii))]
    return {"attack": name, "norm": threat.norm, "eps": eps_values, "accuracy": points, "interval_95": intervals,
            "samples": len(positions)}  # fmt: skip


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

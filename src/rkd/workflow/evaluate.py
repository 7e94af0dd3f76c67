"""The evaluation of a plan's net: its attacks, the self-checks, and what else the configuration asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rkd.core.interfaces import traits_of
from rkd.core.step import AttackPlan
from rkd.core.types import Shape, ThreatModel
from rkd.data.dataset import Split
from rkd.distributed.ranks import ALONE, Ranks
from rkd.engine.accelerator import Engine
from rkd.evaluation.curve import curve
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.journal import Journal
from rkd.evaluation.result import Evaluation
from rkd.evaluation.selfcheck import look, probe, slope
from rkd.evaluation.warnings import Doubt, doubts
from rkd.registry.catalog import Catalog

from .build import choose_device
from .plan import Plan, Progress
from .resolve import bounded

PROBED = 32
"""Images on which the full self-checks run their attacks."""


def evaluate_net(
    net: nn.Module, plan: Plan, catalog: Catalog, progress: Progress | None = None, journal: Journal | None = None,
    detail: Callable[[str], None] = lambda text: None, ranks: Ranks = ALONE,
) -> Evaluation:  # fmt: skip
    """The final evaluation of a plan: on the test images, with its attacks. A journal is closed by the caller;
    `detail` is told how the net is run."""
    rules, data = plan.config.evaluate, plan.data
    shared: dict[str, Any] = {"threat": data.threat, "device": choose_device(plan.config.device)}
    running: dict[str, Any] = {"seed": plan.config.seed, "batch_size": rules.batch_size, "progress": progress}
    result = evaluate(
        net, data.test, plan.evaluation, classes=len(data.classes), limit=rules.limit, rounded=rules.rounded,
        examples=rules.examples, journal=journal, accelerator=Engine(rules.engine, detail),
        ranks=ranks, **shared, **running,
    )  # fmt: skip
    result.warnings = doubted(net, data.test, result, plan.evaluation, catalog, rules.checks, **shared, **running)
    if rules.curve:
        name = curve_attack(plan)
        result.extra["curve"] = curve(
            net, data.test, name, plan.evaluation[name], rules.curve, classes=len(data.classes), limit=rules.limit,
            **shared, **running,
        )  # fmt: skip
    return result


def doubted(
    net: nn.Module, split: Split, result: Evaluation, plans: Mapping[str, AttackPlan], catalog: Catalog, checks: str,
    *, threat: ThreatModel, device: Any = "cpu", seed: int = 0, batch_size: int = 256,
    progress: Progress | None = None,
) -> list[Doubt]:  # fmt: skip
    """All reasons not to trust `result`: its own, and what the self-checks find (`quick`, `full`, or `off`).

    Of full ones, the accuracies of the attacks they ran go into `result.extra["checks"]`.
    """
    found: list[Doubt] = []
    if checks != "off":
        again = next((plan for name, plan in plans.items() if name != "fgsm"), None)
        found += look(net, split, threat=threat, again=_short(again, catalog), device=device)
    if checks == "full" and all(doubt.check != "no-gradient" for doubt in found):  # nothing could be probed with
        shape = tuple(split.images(torch.tensor([0])).shape[1:])
        probed_with = check_plans(threat, shape, catalog)  # type: ignore[arg-type]
        probing, probed = probe(
            net, split, probed_with, threat=threat, samples=PROBED, seed=seed, batch_size=batch_size, device=device,
            progress=progress,
        )  # fmt: skip
        found += probing
        result.extra["checks"] = {
            "samples": probed.samples,
            "clean": probed.accuracy(),
            "attacks": {name: probed.accuracy(name) for name in probed.attacks},
        }
    said = result.warnings
    if checks != "off" and any(doubt.check == "no-effect" for doubt in said):
        said = doubts(result, slope(net, split, threat=threat, device=device))
    known = {doubt.check for doubt in found}
    return found + [doubt for doubt in said if doubt.check not in known]


def curve_attack(plan: Plan) -> str:
    """The attack whose accuracy is drawn against eps, of those that keep to a ball: the first that climbs by gradients
    in more than one step, else one that does not, else one that looks for the nearest image. Such a search knows no
    radius: it repeats at each the same, often long, way."""

    def rank(name: str) -> int:
        traits = traits_of(plan.evaluation[name].attack)
        return 2 if traits.seeks_nearest else int(name == "fgsm" or traits.black_box)

    return min(bounded(plan.evaluation), key=rank)


def check_plans(threat: ThreatModel, shape: Shape, catalog: Catalog) -> dict[str, AttackPlan]:
    """The attacks that `rkd.evaluation.selfcheck.probe` knows the outcome of, as far as their plugins are there."""
    dimensions = math.prod(shape)
    most = 1.0 if threat.norm == "Linf" else math.sqrt(dimensions)
    wanted: dict[str, tuple[str, str, dict[str, Any]]] = {
        "fgsm": ("fgsm", "ce", {}),
        "short": ("pgd", "ce", {"steps": 20, "start": "uniform"}),
        "long": ("pgd", "ce", {"steps": 100, "start": "uniform"}),
        "large": ("pgd", "ce", {"steps": 40, "start": "uniform", "eps": min(4 * threat.eps, most)}),
        "unbounded": ("pgd", "ce", {"steps": 100, "start": "none", "eps": most, "step_size": most / 20}),
        "margin": ("pgd", "margin", {"steps": 100, "start": "uniform"}),
        "black-box": ("square", "margin", {"queries": 300}),
    }
    there = {kind: set(catalog.names(kind)) for kind in ("attack", "objective")}
    return {
        what: AttackPlan(catalog.create("attack", name, options), catalog.create("objective", goal))
        for what, (name, goal, options) in wanted.items()
        if name in there["attack"] and goal in there["objective"]
    }


def _short(plan: AttackPlan | None, catalog: Catalog) -> AttackPlan | None:
    """A quick search for the repeat: five steps of PGD, whatever the evaluation runs."""
    if plan is None or "pgd" not in catalog.names("attack"):
        return None
    return AttackPlan(catalog.create("attack", "pgd", {"steps": 5, "start": "uniform"}), plan.objective)

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
from rkd.evaluation.result import Evaluation, EvaluationWarning
from rkd.evaluation.samples import EvalSettings
from rkd.evaluation.selfcheck import full_checks, margin_slope, quick_checks
from rkd.evaluation.warnings import find_warnings
from rkd.registry.catalog import Catalog

from .build import choose_device
from .plan import Plan, Progress
from .resolve import bounded

CHECKED = 32
"""Images on which the full self-checks run their attacks."""


def evaluate_net(
    net: nn.Module, plan: Plan, catalog: Catalog, progress: Progress | None = None, journal: Journal | None = None,
    detail: Callable[[str], None] = lambda text: None, ranks: Ranks = ALONE,
) -> Evaluation:  # fmt: skip
    """The final evaluation of a plan: on the test images, with its attacks. A journal is closed by the caller;
    `detail` is told how the net is run."""
    rules, data = plan.config.evaluate, plan.data
    settings = settings_of(plan, progress=progress, journal=journal, ranks=ranks, rounded=rules.rounded,
                           examples=rules.examples, accelerator=Engine(rules.engine, detail))  # fmt: skip
    result = evaluate(net, data.test, plan.evaluation, settings)
    result.warnings = all_warnings(net, data.test, result, plan.evaluation, catalog, rules.checks, settings)
    if rules.curve:
        name = curve_attack(plan)
        result.extra["curve"] = curve(net, data.test, name, plan.evaluation[name], rules.curve, settings)
    return result


def settings_of(plan: Plan, **more: Any) -> EvalSettings:
    """What a plan says of its evaluation, whatever is evaluated; `more`: fields of EvalSettings."""
    rules, data = plan.config.evaluate, plan.data
    return EvalSettings(
        threat=data.threat, classes=len(data.classes), seed=plan.config.seed, batch_size=rules.batch_size,
        limit=rules.limit, device=choose_device(plan.config.device), **more,
    )  # fmt: skip


def all_warnings(
    net: nn.Module, split: Split, result: Evaluation, plans: Mapping[str, AttackPlan], catalog: Catalog, checks: str,
    settings: EvalSettings,
) -> list[EvaluationWarning]:  # fmt: skip
    """All reasons not to trust `result`: its own, and those of the self-checks (`quick`, `full`, or `off`).

    Of full ones, the accuracies of the attacks they ran go into `result.extra["checks"]`.
    """
    warnings: list[EvaluationWarning] = []
    if checks != "off":
        repeat = next((plan for name, plan in plans.items() if name != "fgsm"), None)
        warnings += quick_checks(net, split, settings, repeat=_short(repeat, catalog))
    if checks == "full" and all(warning.check != "no-gradient" for warning in warnings):  # or no attack could run
        shape = tuple(split.images(torch.tensor([0])).shape[1:])
        known_outcomes = check_plans(settings.threat, shape, catalog)  # type: ignore[arg-type]
        more, checked = full_checks(net, split, known_outcomes, settings, samples=CHECKED)
        warnings += more
        result.extra["checks"] = {
            "samples": checked.samples,
            "clean": checked.accuracy(),
            "attacks": {name: checked.accuracy(name) for name in checked.attacks},
        }
    own = result.warnings
    if checks != "off" and any(warning.check == "no-effect" for warning in own):
        own = find_warnings(result, margin_slope(net, split, settings))
    known = {warning.check for warning in warnings}
    return warnings + [warning for warning in own if warning.check not in known]


def curve_attack(plan: Plan) -> str:
    """The attack whose accuracy is drawn against eps, of those that keep to a ball: the first that climbs by gradients
    in more than one step, else one that does not, else one that looks for the nearest image. Such a search knows no
    radius: it repeats at each the same, often long, way."""

    def rank(name: str) -> int:
        traits = traits_of(plan.evaluation[name].attack)
        return 2 if traits.seeks_nearest else int(name == "fgsm" or traits.black_box)

    return min(bounded(plan.evaluation), key=rank)


def check_plans(threat: ThreatModel, shape: Shape, catalog: Catalog) -> dict[str, AttackPlan]:
    """The attacks of `rkd.evaluation.selfcheck.full_checks`, as far as their plugins are installed."""
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

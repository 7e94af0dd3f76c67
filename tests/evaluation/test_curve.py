"""Robust accuracy against eps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rkd.core.attack import Target
from rkd.core.errors import RkdError
from rkd.core.step import AttackPlan
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.curve import curve, usual_radii
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.samples import EvalSettings
from rkd.plugins.attacks.cw_l2 import CwL2
from rkd.plugins.attacks.jsma import Jsma
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.ce import ce
from rkd.testing import LinearNet, tiny_batch, tiny_net

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)


def setting():
    net = tiny_net(LinearNet, classes=2)
    x = 0.3 + 0.4 * tiny_batch(60, seed=4).x
    with torch.no_grad():
        return net, x, ArraySplit(x, net(x).argmax(1))


def test_on_a_linear_net_it_is_the_analytic_one() -> None:
    net, x, split = setting()
    radii = [0.01, 0.02, 0.04, 0.08]
    found = curve(net, split, "pgd", AttackPlan(Pgd(steps=10), ce), radii, EvalSettings(threat=THREAT))
    with torch.no_grad():
        z = net(x)
        margin = (z[:, 0] - z[:, 1]).abs()
        reach = (net.arch.weight[1] - net.arch.weight[0]).abs().sum() / 0.25
    expected = [float((margin > eps * reach).double().mean()) for eps in [0.0, *radii]]
    assert found["eps"] == [0.0, *radii]
    assert found["accuracy"] == pytest.approx(expected)
    assert len(set(expected)) > 3


def test_the_point_at_eps_is_the_evaluations() -> None:
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        split = ArraySplit(x, net.eval()(x).argmax(1))
    plan = AttackPlan(Pgd(steps=3, start="uniform"), ce)
    plain = evaluate(net, split, {"pgd": plan}, EvalSettings(threat=THREAT, seed=3))
    found = curve(net, split, "pgd", plan, [THREAT.eps], EvalSettings(threat=THREAT, seed=3))
    assert found["accuracy"] == [plain.accuracy(), plain.accuracy("pgd")]


def test_an_attacks_own_radius_gives_way() -> None:
    net, _, split = setting()
    own = curve(
        net, split, "pgd", AttackPlan(Pgd(steps=5, eps=1e-6, step_size=1e-6), ce), [0.05], EvalSettings(threat=THREAT)
    )
    assert own == curve(net, split, "pgd", AttackPlan(Pgd(steps=5), ce), [0.05], EvalSettings(threat=THREAT))


def test_it_never_rises() -> None:
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    split = ArraySplit(x, net.eval()(x).argmax(1).detach())
    found = curve(
        net,
        split,
        "pgd",
        AttackPlan(Pgd(steps=1, start="uniform"), ce),
        usual_radii(THREAT),
        EvalSettings(threat=THREAT),
    )
    assert found["accuracy"] == sorted(found["accuracy"], reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("threat", [THREAT, ThreatModel("L2", 0.3, 0.1)], ids=["Linf", "L2"])
def test_one_search_serves_all_radii(threat: ThreatModel) -> None:
    """Of an attack whose nearest images are the same at every radius: the points are those of a search at each."""
    calls = []

    class Watched(CwL2):
        def __call__(self, x: Tensor, target: Target) -> Tensor:
            calls.append(len(x))
            return super().__call__(x, target)

    net, x, split = setting()
    split = ArraySplit(x, torch.where(torch.arange(60) % 10 > 0, split.labels, 1 - split.labels))  # some are wrong
    plan = AttackPlan(Watched(steps=60, searches=3, c=1.0, eps=0.01), ce)
    radii = [0.25 * threat.eps, 0.5 * threat.eps, threat.eps, 2 * threat.eps]
    done: list[tuple[int, int]] = []
    found = curve(
        net,
        split,
        "cw-l2",
        plan,
        radii,
        EvalSettings(threat=threat, batch_size=16, progress=lambda *told: done.append(told[1:])),
    )
    assert sum(calls) == 54, "each image that is right, once"
    assert (max(done), {total for _, total in done}) == ((60, 60), {60})
    each = [
        evaluate(net, split, {"cw-l2": replace_plan(plan)}, EvalSettings(threat=threat.with_eps(eps))).accuracy("cw-l2")
        for eps in radii
    ]
    assert found["accuracy"] == [0.9, *each]
    assert len(set(each)) > 2
    assert [bounds[0] < right < bounds[1] or right in bounds for right, bounds in
            zip(found["accuracy"], found["interval_95"], strict=True)] == [True] * 5  # fmt: skip


def replace_plan(plan: AttackPlan) -> AttackPlan:
    return AttackPlan(replace(plan.attack, eps=None), plan.objective)  # type: ignore[type-var]


def test_wrong_use() -> None:
    net, _, split = setting()
    with pytest.raises(RkdError, match="no ball"):
        curve(net, split, "jsma", AttackPlan(Jsma(), ce), [0.1], EvalSettings(threat=THREAT))
    with pytest.raises(RkdError, match="radius"):
        curve(net, split, "pgd", AttackPlan(Pgd(), ce), [], EvalSettings(threat=THREAT))


def test_usual_radii_stay_in_the_images() -> None:
    assert usual_radii(THREAT) == pytest.approx([k / 255 for k in (2, 4, 6, 8, 12, 16, 24, 32)])
    assert max(usual_radii(ThreatModel("Linf", 0.3, 0.1))) <= 1

"""Searches in several balls at once: each image lies in one of them, and is as bad as the worst of single searches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.types import Batch, ThreatModel
from rkd.plugins.attacks.msd import Msd
from rkd.plugins.attacks.pgd import Pgd
from rkd.testing import LinearNet, check_attack, tiny_batch, tiny_net
from rkd.testing.attack import run_attack

BALLS = "Linf:8/255, L2:0.5, L1:3, L0:4"
THREATS = [ThreatModel("Linf", 8 / 255), ThreatModel("L2", 0.5), ThreatModel("L1", 3), ThreatModel("L0", 4)]


def inside(x: Tensor, x_adv: Tensor) -> Tensor:
    """Which of the balls each image lies in, `(4, B)`."""
    return torch.stack([
        ops.image_norm(x_adv.double() - x.double(), t.norm) <= t.eps * (1 + 1e-5) + 1e-6 for t in THREATS
    ])  # fmt: skip


def scores(net, batch: Batch, x_adv: Tensor) -> Tensor:
    with torch.no_grad():
        return ops.cross_entropy(net(x_adv), batch.y)


@pytest.mark.parametrize("how", ["step", "max", "random"])
def test_keeps_the_promises_of_attacks(how: str) -> None:
    check_attack(Msd(steps=4, how=how), optimum=0, eps=float("inf"))


@pytest.mark.parametrize("how", ["step", "max", "random"])
def test_each_image_lies_in_one_of_the_balls(how: str) -> None:
    net, batch = tiny_net(), tiny_batch(12)
    x_adv = run_attack(Msd(BALLS, how=how), net, batch)
    assert inside(batch.x, x_adv).any(0).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    if how == "random":
        assert inside(batch.x, x_adv).sum(0).min() < 4 and len(inside(batch.x, x_adv).unique(dim=1).T) > 1


def test_the_maximum_is_the_worst_of_the_single_searches() -> None:
    net, batch = tiny_net(), tiny_batch(12)
    alone = [
        scores(net.eval(), batch, run_attack(Pgd(start="none", step_size=t.eps / 4), net, batch, t)) for t in THREATS
    ]
    found = scores(net.eval(), batch, run_attack(Msd(BALLS, how="max"), net, batch))
    assert torch.allclose(found, torch.stack(alone).amax(0), atol=1e-5)


def test_multi_steepest_descent_reaches_the_best_ball_of_a_linear_net() -> None:
    net, batch = tiny_net(LinearNet, classes=2), tiny_batch(12, classes=2)
    x_adv = run_attack(Msd(BALLS, steps=20), net, batch, classes=2)
    weight = net.get_parameter("arch.weight").detach()
    slope = ((1 - 2 * batch.y.float())[:, None] * (weight[1] - weight[0])).reshape(batch.x.shape)
    gain = (slope * (x_adv - batch.x)).sum((1, 2, 3))
    best = torch.stack([
        (slope * (ops.linear_optimum(batch.x, slope, t.eps, t.norm) - batch.x)).sum((1, 2, 3)) for t in THREATS
    ])  # fmt: skip
    assert (gain >= 0.85 * best.amax(0)).all() and (gain <= best.amax(0) * (1 + 1e-4) + 0.35 * best[1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"balls": "Linf:8/255"}, "two or more"),
        ({"balls": "L1:12,L1:3"}, "of different norms"),
        ({"balls": "Linf:8,L1:12"}, "8/255"),
        ({"balls": "L3:8,L1:12"}, "NORM:RADIUS"),
        ({"balls": "Linf,L1:12"}, "NORM:RADIUS"),
        ({"balls": "Linf:1/0,L1:12"}, "NORM:RADIUS"),
        ({"balls": "Linf:8/255,L0:2.5"}, "number of pixels"),
        ({"how": "min"}, "how"),
        ({"share": 0.0}, "share"),
        ({"steps": 0}, "steps"),
    ],
)
def test_nonsense_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Msd(**options)

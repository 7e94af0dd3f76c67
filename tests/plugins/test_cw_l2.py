"""Carlini and Wagner's L2 attack against the known distance to a linear boundary."""

from __future__ import annotations

import inspect

import pytest
import torch

from rkd import ops
from rkd.core.interfaces import Attack
from rkd.core.types import ThreatModel
from rkd.plugins.attacks import cw_l2
from rkd.plugins.attacks.cw_l2 import CwL2
from rkd.registry.catalog import reference_keys
from rkd.testing import LinearNet, check_attack, tiny_batch, tiny_net
from rkd.testing.attack import run_attack
from rkd.testing.tiny import Scaled

L2 = ThreatModel("L2", 0.25, 0.06)


def problem(distance: float):
    """A linear net and images at that L2 distance from its boundary, far from 0 and 1."""
    net, batch = tiny_net(LinearNet, classes=2), tiny_batch(6, classes=2)
    slope = ((net.arch.weight[1] - net.arch.weight[0]).detach() / 0.25).reshape(batch.x.shape[1:])
    side = (1 - 2 * batch.y.float()).reshape(-1, 1, 1, 1)
    x = 0.3 + 0.4 * batch.x
    with torch.no_grad():
        ahead = (ops.margin(net(x), batch.y) / slope.norm() - distance).reshape(-1, 1, 1, 1)
    return net, type(batch)(x + side * ahead * slope / slope.norm(), batch.y, batch.index)


@pytest.mark.slow
def test_keeps_the_promises_of_an_attack() -> None:
    check_attack(CwL2(searches=3, steps=30), optimum=0)


@pytest.mark.slow
def test_finds_the_nearest_image_of_a_linear_net() -> None:
    net, batch = problem(0.2)
    for start in (1e-3, 1.0):
        attack = CwL2(steps=200, c=start, bounded=False)
        x_adv = run_attack(attack, net, batch, L2)
        assert not ops.correct(net(x_adv), batch.y).any()
        far = (x_adv - batch.x).flatten(1).norm(dim=1)
        assert (far > 0.2).all() and (far < 0.2 * 1.03).all()


@pytest.mark.slow
def test_returns_what_lies_inside_the_ball_alone() -> None:
    attack = CwL2(steps=200, c=1.0)
    for distance, inside in ((0.23, True), (0.27, False)):
        net, batch = problem(distance)
        x_adv = run_attack(attack, net, batch, L2)
        assert bool(ops.correct(net(x_adv), batch.y).any()) is not inside
        assert torch.equal(x_adv, batch.x) is not inside
    # The nearest image in L2 is far away in some pixel: an Linf ball of the same volume is missed.
    net, batch = problem(0.23)
    assert torch.equal(run_attack(attack, net, batch, ThreatModel("Linf", 0.02, 0.005)), batch.x)
    assert not torch.equal(run_attack(attack, net, batch, ThreatModel("Linf", 0.2, 0.05)), batch.x)


@pytest.mark.slow
def test_kappa_goes_further() -> None:
    net, batch = problem(0.1)
    leads = []
    for kappa in (0.0, 2.0):
        x_adv = run_attack(CwL2(steps=200, c=1.0, kappa=kappa, bounded=False), net, batch, L2)
        leads.append(-ops.margin(net(x_adv), batch.y))
    assert (leads[0] > 0).all() and (leads[0] < 0.3).all()
    assert (leads[1] > 2).all() and (leads[1] < 2.3).all()


@pytest.mark.slow
def test_a_saturated_softmax_does_not_matter() -> None:
    net, batch = problem(0.2)
    x_adv = run_attack(CwL2(steps=200, bounded=False), Scaled(net, 1e3), batch, L2)
    assert not ops.correct(net(x_adv), batch.y).any()
    assert (x_adv - batch.x).flatten(1).norm(dim=1).max() < 0.23


def test_what_is_wrong_already_is_left_alone() -> None:
    net, batch = problem(0.2)
    wrong = type(batch)(batch.x, 1 - batch.y, batch.index)
    assert torch.equal(run_attack(CwL2(steps=20), net, wrong, L2), batch.x)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"searches": 0}, "searches"),
        ({"steps": 0}, "steps"),
        ({"c": 0.0}, "c must"),
        ({"lr": -0.1}, "lr"),
        ({"kappa": -1.0}, "kappa"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_nonsense_is_refused(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CwL2(**options)


def test_defaults_are_those_of_the_paper() -> None:
    attack = cw_l2.rkd_attacks()["cw-l2"]()
    assert isinstance(attack, Attack) and attack.mode == "eval"
    assert (attack.searches, attack.c, attack.lr, attack.kappa) == (9, 1e-3, 0.01, 0.0)
    assert reference_keys(inspect.getdoc(cw_l2))

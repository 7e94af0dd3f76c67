"""DDN, FMN and sigma-zero against the known distance to a linear boundary, and what an evaluation tells of them."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.attack import Target
from rkd.core.errors import Refused
from rkd.core.interfaces import Attack
from rkd.core.step import AttackPlan
from rkd.core.traits import traits_of
from rkd.core.types import Batch, Norm, ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.curve import curve
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.samples import EvalSettings
from rkd.plugins.attacks import ddn, fmn, sigma_zero
from rkd.plugins.attacks._nearest import Nearest
from rkd.plugins.attacks.ddn import Ddn
from rkd.plugins.attacks.fmn import Fmn
from rkd.plugins.attacks.sigma_zero import SigmaZero
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import reference_keys
from rkd.testing import LinearNet, check_attack, tiny_batch, tiny_net
from rkd.testing.attack import run_attack
from rkd.testing.tiny import Scaled

DISTANCE: dict[Norm, float] = {"Linf": 0.02, "L2": 0.2, "L1": 0.4}
"""To the boundary, in each norm: small enough that [0, 1] is far away."""
SEARCHES = [(Ddn, "L2"), *((Fmn, norm) for norm in DISTANCE)]


def problem(norm: Norm) -> tuple[nn.Module, Batch]:
    """A linear net and images at that distance from its boundary, far from 0 and 1."""
    net, batch = tiny_net(LinearNet, classes=2), tiny_batch(6, classes=2)
    slope = ((net.arch.weight[1] - net.arch.weight[0]).detach() / 0.25).reshape(batch.x.shape[1:])
    reach = DISTANCE[norm] * {"Linf": slope.abs().sum(), "L2": slope.norm(), "L1": slope.abs().max()}[norm]
    side = (1 - 2 * batch.y.float()).reshape(-1, 1, 1, 1)
    x = 0.3 + 0.4 * batch.x
    with torch.no_grad():
        ahead = (ops.margin(net(x), batch.y) - reach).reshape(-1, 1, 1, 1)
    return net, replace(batch, x=x + side * ahead * slope / slope.square().sum())


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "optimum"), [(Ddn(steps=100), 0), (Fmn(steps=100), 0.9)], ids=["ddn", "fmn"])
def test_keeps_the_promises_of_an_attack(attack: Attack, optimum: float) -> None:
    check_attack(attack, optimum=optimum, sparse_optimum=optimum)


@pytest.mark.slow
def test_sigma_zero_keeps_them_where_changes_are_counted() -> None:
    check_attack(SigmaZero(steps=100), sparse_optimum=0.9, plainest=ThreatModel("L0", 4, 1))


@pytest.mark.parametrize("norm", ["L0", "L0-values"])
@pytest.mark.parametrize("search", [SigmaZero, Fmn])
def test_counts_of_changes_are_the_fewest_possible_or_nearly(search: type, norm: Norm) -> None:
    net, batch = tiny_net(LinearNet, classes=2), tiny_batch(12, classes=2)
    x = 0.3 + 0.4 * batch.x
    with torch.no_grad():
        batch = replace(batch, x=x, y=net(x).argmax(1))
        lead = ops.margin(net(x), batch.y)
    slope = (net.arch.weight[1] - net.arch.weight[0]).detach().reshape(1, *x.shape[1:]) / 0.25
    slope = slope * (1 - 2 * ops.per_image(batch.y, x))  # uphill for the other class
    gains = torch.where(slope > 0, 1 - x, x) * slope.abs()
    gains = gains.sum(1) if norm == "L0" else gains
    fewest = (gains.flatten(1).sort(1, descending=True).values.cumsum(1) < lead.unsqueeze(1)).sum(1) + 1
    assert len(fewest.unique()) > 1
    x_adv = run_attack(search(steps=200, bounded=False), net, batch, ThreatModel(norm, 1, 1), classes=2)
    assert not ops.correct(net(x_adv), batch.y).any()
    found = ops.image_norm(x_adv - x, norm)
    assert (found >= fewest).all() and (found <= fewest + 1).all(), (found, fewest)
    assert (found == fewest).double().mean() >= 0.7, (found, fewest)


def test_sigma_zero_refuses_balls_in_which_nothing_is_counted() -> None:
    net, batch = problem("L2")
    with pytest.raises(Refused, match="L0, L0-values alone"):
        run_attack(SigmaZero(), net, batch, ThreatModel("Linf", 0.1, 0.1))


@pytest.mark.parametrize(("search", "norm"), SEARCHES, ids=str)
def test_finds_the_nearest_image_of_a_linear_net(search: type, norm: Norm) -> None:
    net, batch = problem(norm)
    x_adv = run_attack(search(steps=100, bounded=False), net, batch, ThreatModel(norm, 1e-3, 1e-3))
    assert not ops.correct(net(x_adv), batch.y).any()
    far = ops.image_norm(x_adv - batch.x, norm) / DISTANCE[norm]
    assert (far >= 0.9999).all() and (far < 1.02).all(), far


@pytest.mark.parametrize(("search", "norm"), SEARCHES, ids=str)
def test_returns_what_lies_inside_the_ball_alone(search: type, norm: Norm) -> None:
    net, batch = problem(norm)
    for share, inside in ((1.1, True), (0.9, False)):
        x_adv = run_attack(search(steps=60), net, batch, ThreatModel(norm, share * DISTANCE[norm], 0.1))
        assert bool(ops.correct(net(x_adv), batch.y).any()) is not inside
        assert torch.equal(x_adv, batch.x) is not inside


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize("search", [Ddn, Fmn])
def test_the_scale_of_the_logits_does_not_matter(search: type, factor: float) -> None:
    """Cross-entropy has no gradient left at 1e4."""
    net, batch = problem("L2")
    found = [
        run_attack(search(steps=60, bounded=False), Scaled(net, scale), batch, ThreatModel("L2", 0.1, 0.1))
        for scale in (1.0, factor)
    ]
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("search", [Ddn, Fmn])
def test_a_gradient_that_is_no_number_does_no_harm(search: type) -> None:
    class Root(nn.Module):
        """Fooled by a dark image; the slope of a root is infinite at 0."""

        def forward(self, x: Tensor) -> Tensor:
            light = x.flatten(1).sum(1)
            return torch.stack((light, 1 + 0 * (x.flatten(1)[:, 0] - x.flatten(1)[:, 0]).sqrt()), dim=1)

    batch = Batch(torch.full((2, 1, 2, 2), 0.4), torch.zeros(2).long(), torch.arange(2))
    x_adv = run_attack(search(steps=20, bounded=False), Root(), batch, ThreatModel("L2", 0.1, 0.1))
    assert x_adv.isfinite().all()


def test_what_is_wrong_already_is_left_alone() -> None:
    net, batch = problem("L2")
    wrong = replace(batch, y=1 - batch.y)
    for search in (Ddn, Fmn):
        assert torch.equal(run_attack(search(steps=20), net, wrong, ThreatModel("L2", 1.0, 0.1)), batch.x)


def test_ddn_rounds_to_levels_on_wish() -> None:
    net, batch = problem("L2")
    for levels in (256, 16):
        x_adv = run_attack(Ddn(steps=60, levels=levels, bounded=False), net, batch, ThreatModel("L2", 1.0, 0.1))
        assert not ops.correct(net(x_adv), batch.y).any()
        assert torch.allclose(x_adv * (levels - 1), (x_adv * (levels - 1)).round(), atol=1e-4)


def test_more_steps_come_nearer() -> None:
    net, batch = Scaled(tiny_net(), 3), tiny_batch(24)
    with torch.no_grad():
        batch = replace(batch, y=net.eval()(batch.x).argmax(1))
    for search in (Ddn, Fmn):
        far = []
        for steps in (20, 200):
            x_adv = run_attack(search(steps=steps, bounded=False), net, batch, ThreatModel("L2", 1.0, 0.1))
            far.append(float(ops.image_norm(x_adv - batch.x, "L2").median()))
        assert far[1] <= far[0]


class Doubtful:
    """A target of a copy of the net that is wrong by `off`, for images `(B, 1, 1, 1)` that fool the net from 0.5 on."""

    def __init__(self, count: int, off: float) -> None:
        self.y, self.off, self.asked = torch.zeros(count).long(), off, 0

    def select(self, rows: Tensor) -> Doubtful:
        selected = Doubtful(len(rows), self.off)
        selected.parent = self
        return selected

    def reference(self, x: Tensor) -> Tensor:
        self.parent.asked += len(x)
        return self.logits(x, 0.0)

    def logits(self, x: Tensor, off: float) -> Tensor:
        rise = x.flatten() - 0.5 + off
        return torch.stack((-rise, rise), dim=1)


def test_only_what_fools_the_exact_net_counts() -> None:
    x = torch.zeros(2, 1, 1, 1)
    target = Doubtful(2, off=0.1)
    near = Nearest(x, target, "L2", steps=10)
    for images in ([0.9, 0.9], [0.8, 0.3], [0.6, 0.55], [0.45, 0.52], [0.44, 0.7], *[[0.0, 0.0]] * 5):
        images = torch.tensor(images).reshape(2, 1, 1, 1)
        near.note(images, target.logits(images, 0.1))
    assert near.images.flatten().tolist() == pytest.approx([0.8, 0.52])
    assert near.distance.tolist() == pytest.approx([0.8, 0.52])
    assert target.asked <= 2 * 5


def test_an_evaluation_tells_the_distances_and_the_whole_curve_for_one_search() -> None:
    calls = []

    class Watched(Ddn):
        def __call__(self, x: Tensor, target: Target) -> Tensor:
            calls.append(len(x))
            return super().__call__(x, target)

    net, batch = problem("L2")
    split = ArraySplit(batch.x, torch.where(torch.arange(6) > 0, batch.y, 1 - batch.y))  # one is wrong
    for norm, eps, inside in (("L2", 0.21, True), ("L2", 0.19, False), ("Linf", 0.001, False)):
        calls.clear()
        plan = AttackPlan(Watched(steps=60), ce)
        settings = EvalSettings(threat=ThreatModel(norm, eps, 0.1), batch_size=3)
        result = evaluate(net, split, {"ddn": plan}, settings)
        assert sum(calls) == 5
        assert result.accuracy("ddn") == (0 if inside else 5 / 6)
        distance = result.outcomes["ddn"].distance
        assert distance is not None and distance[0] == 0 and torch.allclose(distance[1:], torch.tensor(0.2), rtol=0.02)
        told = result.summary()["searches"]["ddn"]
        assert told["measure"] == "L2" and told["distance"]["found"] == told["distance"]["samples"] == 5
        assert told["distance"]["median"] == pytest.approx(0.2, rel=0.02)
        if norm == "L2":
            found = curve(net, split, "ddn", plan, [0.1, 0.19, 0.21], settings, distance)
            assert found["accuracy"] == pytest.approx([5 / 6, 5 / 6, 5 / 6, 0]) and sum(calls) == 5
            assert found == curve(net, split, "ddn", plan, [0.1, 0.19, 0.21], settings)


@pytest.mark.parametrize(
    ("search", "options", "word"),
    [
        (Ddn, {"steps": 0}, "steps"),
        (Ddn, {"gamma": 1.0}, "gamma"),
        (Ddn, {"start": 0.0}, "start"),
        (Ddn, {"levels": 1}, "levels"),
        (Ddn, {"eps": -1.0}, "eps"),
        (Fmn, {"steps": 20_000}, "steps"),
        (Fmn, {"gamma": 0.0}, "gamma"),
        (Fmn, {"step": 0.0}, "step must"),
        (SigmaZero, {"steps": 0}, "steps"),
        (SigmaZero, {"lr": 0.0}, "lr must"),
        (SigmaZero, {"sigma": 0.0}, "sigma must"),
        (SigmaZero, {"tau": 1.5}, "tau"),
        (SigmaZero, {"norm": "L2"}, "norm must be one of"),
        (SigmaZero, {"norm": "L0", "eps": 0.5}, "number of pixels"),
        (Fmn, {"norm": "L3"}, "norm must be one of"),
        (Fmn, {"eps": 8.0, "norm": "Linf"}, "8/255"),
    ],
)
def test_nonsense_is_refused(search: type, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        search(**options)


def test_names_and_citations() -> None:
    for module, name, steps in ((ddn, "ddn", 300), (fmn, "fmn", 300), (sigma_zero, "sigma-zero", 1000)):
        attack = module.rkd_attacks()[name]()
        assert isinstance(attack, Attack) and attack.bounded and attack.mode == "eval" and attack.steps == steps
        assert traits_of(attack).any_radius and traits_of(attack).confirms
        assert len(reference_keys(inspect.getdoc(module))) == 1
    assert math.isclose(Ddn().gamma, 0.05)

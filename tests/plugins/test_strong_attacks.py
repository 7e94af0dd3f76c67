"""MALT's order, GAMA-PGD, PMA, AutoAttack+ and PGD's stop at a repeated iterate: by hand, and never weaker."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkd import ops
from rkd.core.attack import PlainProbe, Target
from rkd.core.interfaces import Attack
from rkd.core.step import AttackPlan, Step
from rkd.core.types import Batch, ThreatModel
from rkd.evaluation.counting import CountingModel
from rkd.plugins.attacks import apgd, pgd, pma
from rkd.plugins.attacks.apgd import ApgdT, nearest_classes
from rkd.plugins.attacks.autoattack import AutoAttack, AutoAttackPlus
from rkd.plugins.attacks.gama import Gama, _fall
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.pma import Pma, PmaPlus
from rkd.testing import tiny_batch, tiny_net
from rkd.testing.attack import run_attack
from rkd.testing.tiny import Scaled, cross_entropy

LINF = ThreatModel("Linf", 0.03, 0.0075)
L2 = ThreatModel("L2", 0.3, 0.075)
L1 = ThreatModel("L1", 1.5, 0.4)
SMALL: dict[str, Any] = {"steps": 10, "targets": 2, "queries": 50}


def labelled(net: nn.Module, count: int = 24, classes: int = 4) -> Batch:
    batch = tiny_batch(count, classes=classes)
    with torch.no_grad():
        return replace(batch, y=net.eval()(batch.x).argmax(1))


def robust(net: nn.Module, x: Tensor, batch: Batch) -> Tensor:
    with torch.no_grad():
        return ops.correct(net.eval()(x), batch.y)


def counted(net: nn.Module, batch: Batch, attack: Attack, threat: ThreatModel) -> tuple[Tensor, int]:
    """The images, and how many gradients they cost."""
    student = CountingModel(net)
    step = Step(batch, student, attacks={"adv": AttackPlan(attack, cross_entropy)}, threat=threat, noise_key=5)
    return step.image("adv"), student.queries.backwards


class Given:
    """A target that has logits, labels and nothing else."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        self.probe, self.y = PlainProbe(net), y

    def logits(self, x: Tensor) -> Tensor:
        return self.probe(x)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_malt_is_the_distance_in_the_linearised_net(norm: str) -> None:
    net = tiny_net(classes=7).requires_grad_(False).eval()
    batch = labelled(net, 6, classes=7)
    found = nearest_classes(batch.x, Given(net, batch.y), 3, norm)  # type: ignore[arg-type]
    for row, label in enumerate(batch.y.tolist()):
        distances = {}
        for other in {*range(7)} - {label}:
            x = batch.x[row : row + 1].clone().requires_grad_()
            logits = net(x)[0]
            lead = logits[label] - logits[other]
            (slope,) = torch.autograd.grad(lead, x)
            distances[other] = lead.item() / float(slope.abs().sum() if norm == "Linf" else slope.norm())
        assert found[row].tolist() == sorted(distances, key=lambda other: distances[other])[:3]


def test_apgd_t_takes_malts_order_or_that_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Scaled(tiny_net(classes=7), 3)
    batch, asked = labelled(net, 6, classes=7), []

    def nearest(x: Tensor, target: Target, limit: int, norm: str) -> Tensor:
        asked.append((limit, norm))
        return nearest_classes(x, target, limit, norm)  # type: ignore[arg-type]

    monkeypatch.setattr(apgd, "nearest_classes", nearest)
    run_attack(ApgdT(steps=5, targets=2), net, batch, L2)
    assert not asked
    run_attack(ApgdT(steps=5, targets=2, order="malt"), net, batch, L2)
    assert asked == [(2, "L2")]
    with pytest.raises(ValueError, match="order must be one of logits, malt"):
        ApgdT(order="distance")  # type: ignore[arg-type]


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=["Linf", "L2", "L1"])
def test_autoattack_plus_is_never_weaker(threat: ThreatModel) -> None:
    """Image by image, with the same random numbers: what falls to autoattack falls to autoattack+."""
    net = Scaled(tiny_net(), 3)
    batch = labelled(net, 40)
    for eps in (0.4, 1.0, 1.6):
        near = replace(threat, eps=eps * threat.eps)
        plain = robust(net, run_attack(AutoAttack(**SMALL), net, batch, near), batch)
        more = robust(net, run_attack(AutoAttackPlus(**SMALL, restarts=2), net, batch, near), batch)
        assert not (more & ~plain).any()


def test_autoattack_plus_has_the_parts_of_autoattack_with_their_names() -> None:
    for norm in ("Linf", "L2", "L1"):
        plain, plus = AutoAttack(**SMALL).parts(norm), AutoAttackPlus(**SMALL).parts(norm)  # type: ignore[arg-type]
        assert {name: plus[name] for name in plain} == plain
    assert list(plus) == ["apgd-ce", "apgd-margin", "apgd-t malt", "apgd-t", "fab-t", "square"]
    assert any("published" in note for note in AutoAttackPlus().notes(10))


def test_gama_is_the_published_loop() -> None:
    """One run without a sample that leaves: the last iterate's loss and steps by hand."""
    net = tiny_net().requires_grad_(False).eval()
    batch, threat = labelled(net, 8), ThreatModel("Linf", 1e-4, 2.5e-5)  # too small to fool any
    images: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, x: images.append(x[0].detach().clone()))
    run_attack(Gama(steps=20), net, batch, threat)
    seen = [x for x in images if len(x) == len(batch)]
    path = seen[2:22]  # after the images as they are, twice
    with torch.no_grad():
        clean = net(batch.x).softmax(1)
    for i, (x, following) in enumerate(itertools.pairwise(path)):
        x = x.clone().requires_grad_()
        p = net(x).softmax(1)
        right = p.gather(1, batch.y[:, None])[:, 0]
        other = p.masked_fill(F.one_hot(batch.y, 4).bool(), -1).amax(1)
        weight = 50 * max(1 - i / 5, 0)
        loss = other - right + weight * (p - clean).square().sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        length = 2 * threat.eps * (1 if i < 12 else 0.1 if i < 17 else 0.01)
        step = (x + length * gradient.sign()).detach()
        expected = step.clamp(batch.x - threat.eps, batch.x + threat.eps).clamp(0, 1)
        assert ((expected - following).abs() <= 1e-7).double().mean() > 0.99
    corner = (path[0] - batch.x).abs()
    assert torch.allclose(corner[(batch.x > 0.01) & (batch.x < 0.99)], torch.tensor(threat.eps), atol=1e-6)
    assert [_fall(s) for s in (0.59, 0.6, 0.84, 0.85)] == [1, 0.1, 0.1, 0.01]


def test_pma_turns_from_one_probability_to_their_margin() -> None:
    logits, y = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    p = logits.softmax(1)
    right, other = torch.stack([p[0, 0], p[1, 2]]), torch.stack([p[0, 1], p[1, 1]])
    attack = Pma(steps=10)
    assert torch.allclose(attack._down(0, logits, y, None), right)
    assert torch.allclose(attack._up(0, logits, y, None), right)
    assert torch.allclose(attack._down(4, logits, y, None), -right)
    assert torch.allclose(attack._up(4, logits, y, None), other)
    assert torch.allclose(attack._down(5, logits, y, None), other - right)
    lengths = pma._lengths(0.5, 10)
    assert len(lengths) == 10 and lengths[1] == 1.0 and lengths[6] == 1.0
    assert math.isclose(lengths[5], 0.5 * (1 + math.cos(math.pi * 4 / 5)))


@pytest.mark.parametrize("attack", [Pma(steps=20), PmaPlus(steps=20), Gama(steps=20)])
@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_as_strong_as_pgd(attack: Attack, threat: ThreatModel) -> None:
    net = Scaled(tiny_net(), 3)
    batch = labelled(net)
    plain = robust(net, run_attack(Pgd(steps=20, start="uniform"), net, batch, threat), batch)
    assert robust(net, run_attack(attack, net, batch, threat), batch).sum() <= plain.sum() + 1


def test_screening_attacks_say_so() -> None:
    assert all("screening" in attack.notes(10)[0] for attack in (Pma(), PmaPlus()))


@pytest.mark.parametrize("clip", ["each", "end"])
@pytest.mark.parametrize("steps", [20, 47, 100])
def test_a_repeated_iterate_ends_a_search_with_the_same_images(steps: int, clip: str) -> None:
    """The gradients of a linear layer before a ReLU repeat; an ascent that goes round ends where it would have."""
    net = tiny_net()
    batch = labelled(net, 16)
    attack = Pgd(steps=steps, start="uniform", clip=clip)  # type: ignore[arg-type]
    whole, all_of_them = counted(net, batch, attack, LINF)
    short, few = counted(net, batch, replace(attack, leave_repeats=True), LINF)
    assert all_of_them == steps * len(batch)
    assert few < all_of_them
    assert torch.equal(robust(net, short, batch), robust(net, whole, batch))
    assert torch.allclose(short, whole, atol=1e-6)


def test_an_iterate_of_any_period_ends_where_it_would() -> None:
    """Periods of 1, 2, 3 and 7 steps, and none: the bookkeeping alone, against the sequence itself."""
    periods, steps = torch.tensor([1, 2, 3, 7, 10**6]), 95

    def at(step: int, rows: Tensor) -> Tensor:
        return (step % periods[rows]).float().view(-1, 1, 1, 1)

    rows = torch.arange(5)
    repeats = pgd._Repeats(at(0, rows), [0.1] * steps)
    asked = 0
    for done in range(1, steps + 1):
        asked += len(rows)
        stay = repeats.staying(done, at(done, rows))
        rows = rows if stay is None else rows[stay]
    assert torch.equal(repeats.all_with(at(steps, rows)), at(steps, torch.arange(5)))
    assert asked < 5 * steps and 4 in rows.tolist()


def test_an_attack_in_another_mode_takes_all_steps() -> None:
    net = tiny_net()
    batch = labelled(net, 4)
    assert counted(net, batch, Pgd(steps=40, mode="frozen"), LINF)[1] == 160

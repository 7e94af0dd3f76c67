"""Queries of an attack are counted, once each, and the net learns nothing from them."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from rkd.core.attack import PlainProbe
from rkd.core.step import AttackPlan, Step
from rkd.core.types import ThreatModel
from rkd.evaluation.counting import CountingModel, QueryCount, attack_batch
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.square import Square
from rkd.plugins.objectives.ce import ce
from rkd.testing import tiny_batch, tiny_net, untouched
from rkd.training.dry_run import counting

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)


@pytest.mark.parametrize("mode", ["eval", "train", "frozen"])
def test_images_and_gradients_are_counted(mode: str) -> None:
    net, batch = tiny_net(), tiny_batch(6)
    model = CountingModel(net)
    with untouched(net), counting({"net": net}) as counts:
        Step(batch, model, attacks={"adv": AttackPlan(Pgd(steps=3, mode=mode), ce)}, threat=THREAT).image("adv")
    assert model.queries == QueryCount(18, 18) and model.other_queries == QueryCount()
    assert (counts["net"].forwards, counts["net"].backwards) == (3, 3)


def test_questions_about_patches_count_as_forwards() -> None:
    batch = tiny_batch(6)
    net = tiny_net().eval()
    with torch.no_grad():
        batch = type(batch)(batch.x, net(batch.x).argmax(1), batch.index)
    model = CountingModel(net)
    attack = Square(eps=1e-6, queries=20)  # fools nothing
    Step(batch, model, attacks={"adv": AttackPlan(attack, ce)}, threat=THREAT).image("adv")
    assert model.queries == QueryCount(6 * (1 + 1 + 20), 0), "as they are, the start, and one for each query"


def test_another_net_in_its_place_is_counted_apart() -> None:
    model = CountingModel(tiny_net())
    other = model.stand_in(tiny_net(seed=1))
    other.logits({"clean": tiny_batch(4).x}, "eval")
    other.stand_in(tiny_net(seed=2)).logits({"clean": tiny_batch(3).x}, "eval")
    assert model.queries == QueryCount() and model.other_queries == QueryCount(7, 0)


class Shifted:
    """An accelerator whose copy answers something else."""

    name = "shifted"

    @contextmanager
    def probe(self, net, view, plain):
        class Probe(PlainProbe):
            def __call__(self, x):
                return plain(x) + 1

        yield Probe(plain)

    def choices(self):
        return ["shifted"]


def test_accelerated_queries_and_those_of_the_net_itself_are_counted_alike() -> None:
    model, x = CountingModel(tiny_net(), Shifted()), tiny_batch(5).x
    with model.attacked("adv", "eval") as probe, torch.no_grad():
        assert torch.allclose(probe(x), probe.reference(x) + 1, atol=1e-6)
        assert probe.low_precision("gradient") is probe
    assert model.queries == QueryCount(10, 0)


def test_a_batch_is_attacked_by_its_seed() -> None:
    net, batch, plan = tiny_net(), tiny_batch(4), AttackPlan(Pgd(steps=2, start="uniform"), ce)
    one, again, other = (attack_batch(net, batch, plan, THREAT, key) for key in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)

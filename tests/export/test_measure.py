"""An artefact beside its net: attacked straight through, by transfer, and compared image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from rkd.core.errors import Refused
from rkd.core.step import AttackPlan
from rkd.core.traits import AttackTraits
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.result import AttackResult, Evaluation
from rkd.evaluation.samples import EvalSettings
from rkd.export.measure import (
    TRANSFERRED,
    StraightThrough,
    changes,
    check_same,
    difference,
    figures,
    plans_of,
)
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_net


class Rounded(nn.Module):
    """A net whose logits are rounded: no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) * 4).round() / 4


def test_straight_through() -> None:
    net = tiny_net(classes=3)
    both = StraightThrough(Rounded(net), net)
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    assert torch.equal(both(x), Rounded(net)(x))
    assert not both(x.detach()).requires_grad
    weight = torch.rand(4, 3)
    (got,) = torch.autograd.grad((both(x) * weight).sum(), x)
    (expected,) = torch.autograd.grad((net(x) * weight).sum(), x)
    assert torch.equal(got, expected)


def test_attacks_on_an_artefact(catalog: Catalog) -> None:
    """A rounded net falls to gradients that it does not have, and to images of its net."""
    torch.manual_seed(1)
    net = tiny_net(classes=3).eval()
    x = torch.rand(60, 1, 8, 8)
    split = ArraySplit(x, net(x).argmax(1))
    objective = catalog.create("objective", "ce")
    plans = {"pgd": AttackPlan(catalog.create("attack", "pgd", {"steps": 5}), objective),
             "noise": AttackPlan(catalog.create("attack", "noise", {"draws": 2}), objective)}  # fmt: skip
    settings = EvalSettings(threat=ThreatModel("Linf", 0.3, 0.1))
    result = evaluate(StraightThrough(Rounded(net), net), split, plans_of(net, plans, "pgd"), settings)
    table = figures(result)
    assert table["of_kind"] == {"transferred": [TRANSFERRED], "straight_through": ["pgd"], "black_box": ["noise"]}
    accuracy = table["accuracy"]
    assert accuracy["straight_through"] < 0.9 * accuracy["clean"] and accuracy["transferred"] < 0.9 * accuracy["clean"]
    assert accuracy["worst_case"] <= min(accuracy["straight_through"], accuracy["transferred"])
    assert "made on the float net by Pgd" in table["searches"][TRANSFERRED]["notes"][0]
    assert result.outcomes[TRANSFERRED].backwards == 0 and result.outcomes[TRANSFERRED].others[1] > 0


def test_transferred_images_are_those_of_the_net(catalog: Catalog) -> None:
    @dataclass
    class Asks:
        """Remembers whom it asked."""

        mode: ClassVar = "eval"
        traits: ClassVar = AttackTraits()

        def __call__(self, x: Tensor, target: Any) -> Tensor:
            self.seen = target.logits(x)
            return x

    net, other = tiny_net(classes=3), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    split = ArraySplit(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    split = ArraySplit(split.images(torch.arange(4)), other(split.images(torch.arange(4))).argmax(1))
    asks = Asks()
    plans = plans_of(net, {"asks": AttackPlan(asks, catalog.create("objective", "ce"))}, "asks")
    evaluate(other, split, {TRANSFERRED: plans[TRANSFERRED]}, EvalSettings(threat=ThreatModel("Linf", 0.1, 0.1)))
    with torch.no_grad():
        assert sorted(asks.seen[:, 0].tolist()) == pytest.approx(
            sorted(net.eval()(split.images(torch.arange(4)))[:, 0].tolist())
        )


def test_the_difference_of_logits() -> None:
    class Two(nn.Module):
        """Of one image it says something else than of several."""

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + (1.0 if len(x) == 2 else 0.0)

    net, images = nn.Flatten(), torch.full((4, 1, 1, 2), 2.0)
    assert difference(net, net, images) == 0
    assert difference(Two(), net, images) == pytest.approx(0.5)
    check_same(1e-6, "it")
    with pytest.raises(Refused, match=r"it: its logits differ from the net's by 5\.0e-01 of the largest"):
        check_same(0.5, "it")
    with pytest.raises(Refused, match=r"returns \(1, 1\) for 1 images, the net \(1, 2\)"):
        difference(nn.Sequential(nn.Flatten(), nn.Linear(2, 1)), net, images)


def evaluation(clean: list[int], attacked: list[int]) -> Evaluation:
    def result(right: list[int]) -> AttackResult:
        return AttackResult(torch.tensor(right).bool(), torch.zeros(len(right)), torch.zeros(len(right)))

    return Evaluation(
        torch.arange(len(clean)), torch.zeros(len(clean)), {"clean": result(clean), "pgd": result(attacked)}, 2
    )


def test_changes_are_told_and_drops_doubted() -> None:
    ones, none = [1] * 100, [0] * 100
    same = evaluation(ones, ones)
    assert changes(same, same, "int8") == ([], [])
    told, doubts = changes(same, evaluation([0] * 2 + [1] * 98, [0] * 2 + [1] * 98), "int8")
    assert told[0] == "int8: clean from 100.00% to 98.00% (lost 2, won 0 of 100 images)" and len(told) == 2
    assert not doubts
    told, doubts = changes(same, evaluation([0] * 9 + [1] * 91, [0] * 9 + [1] * 91), "int8")
    assert not told and [text.endswith(": a drop") for text in doubts] == [True, True]
    told, doubts = changes(evaluation(ones, none), evaluation(ones, [1] * 9 + [0] * 91), "int8")
    assert not told and "rounding hides gradients" in doubts[0]

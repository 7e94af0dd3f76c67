"""Evaluation on a device that is no CPU: every image gets the CPU's verdict, with the CPU's confidence bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rkd
from rkd.core.step import AttackPlan
from rkd.core.traits import traits_of
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.corruptions import corrupted_accuracy, corrupted_files_accuracy
from rkd.evaluation.curve import curve
from rkd.evaluation.samples import EvalSettings
from rkd.evaluation.transfer import transfer_matrix
from rkd.plugin import Target
from rkd.testing import TinyParts, tiny_batch, tiny_net, untouched

from .runs import CATALOG, CPU, assert_same, short

BATCH = tiny_batch(12)
THREAT = rkd.ThreatModel("Linf", 8 / 255, 2 / 255)


class Parts(TinyParts):
    """Nets that an attack asks for come on the device of the evaluation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(CATALOG)
        self.device = device

    def net(self, *arguments: Any, **options: Any) -> nn.Module:
        return super().net(*arguments, **options).to(self.device)


def plan_of(name: str, device: torch.device) -> AttackPlan:
    options = short(name) | ({"source": "any"} if name == "transfer" else {})
    attack = Parts(device).attack(name, options)
    return AttackPlan(attack, CATALOG.create("objective", traits_of(attack).objective))


def evaluated(device: torch.device, plans: Mapping[str, AttackPlan] | str, **settings: Any) -> rkd.Evaluation:
    """The labels are the net's own answers: no sample is lost before an attack."""
    net = tiny_net().eval()
    with torch.no_grad():
        y = net(BATCH.x).argmax(1)
    if isinstance(plans, str):
        plans = {plans: plan_of(plans, device)}
    settings = {"threat": THREAT, "engine": "plain", "checks": "off", "batch_size": 8} | settings
    return rkd.evaluate(net.to(device), (BATCH.x, y), plans, device=device, **settings)


def tensors_of(result: rkd.Evaluation) -> dict[str, Tensor]:
    columns = ("right", "prediction", "confidence", "margin", "rounded")
    found = {
        f"{name}.{column}": getattr(outcome, column) for name, outcome in result.outcomes.items() for column in columns
    }
    return {name: value for name, value in found.items() if value is not None}


def assert_same_verdicts(found: rkd.Evaluation, expected: rkd.Evaluation) -> None:
    assert_same(tensors_of(found), tensors_of(expected))
    assert all(value.device == CPU for value in tensors_of(found).values())
    for name, outcome in expected.outcomes.items():
        other = found.outcomes[name]
        assert (other.forwards, other.backwards, other.about) == (outcome.forwards, outcome.backwards, outcome.about)


SLOW = {"autoattack-reference"}
EVALUATED = [name for name in CATALOG.names("attack") if name != "pgd-joint"]  # that one asks a teacher


@pytest.mark.parametrize(
    "attack",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EVALUATED],
)
def test_every_attack(attack: str, device: torch.device) -> None:
    threat = ThreatModel("L0", 4, 1) if attack == "sigma-zero" else THREAT
    if attack == "autoattack-reference":  # no option makes it short: in a ball in which nothing stands for long
        pytest.importorskip("pyautoattack")
        threat = THREAT.with_eps(0.5)
    expected, found = (evaluated(one, attack, threat=threat, rounded=True) for one in (CPU, device))
    assert_same_verdicts(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("corruption", CATALOG.names("corruption"))
def test_every_corruption(corruption: str, device: torch.device) -> None:
    split = ArraySplit(BATCH.x[:6], BATCH.y[:6])
    makers = {corruption: CATALOG.create("corruption", corruption)}
    expected, found = (
        corrupted_accuracy(tiny_net().eval().to(one), split, makers, EvalSettings(device=one, batch_size=4))
        for one in (CPU, device)
    )
    assert found == expected


def test_corrupted_files(tmp_path: Path, device: torch.device) -> None:
    pixels = (BATCH.x[:5] * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.ones(5, dtype=np.int64))
    expected, found = (
        corrupted_files_accuracy(tiny_net().eval().to(one), tmp_path, EvalSettings(device=one), names=["fog"])
        for one in (CPU, device)
    )
    assert found == expected


@pytest.mark.parametrize("attack", ["pgd", "fab-t"])  # a search at each radius, a search for the nearest image
def test_a_curve(attack: str, device: torch.device) -> None:
    split = ArraySplit(BATCH.x[:6], BATCH.y[:6])
    expected, found = (
        curve(
            tiny_net().eval().to(one),
            split,
            attack,
            plan_of(attack, one),
            [0.02, 0.1],
            EvalSettings(threat=THREAT, device=one),
        )
        for one in (CPU, device)
    )
    assert found == expected


def test_a_transfer_matrix(device: torch.device) -> None:
    split = ArraySplit(BATCH.x[:6], BATCH.y[:6])
    matrices = []
    for one in (CPU, device):
        nets = {name: tiny_net(seed=seed).eval().to(one) for seed, name in enumerate("ab")}
        settings = EvalSettings(threat=THREAT, device=one)
        matrices.append(transfer_matrix(nets, split, plan_of("pgd", one), settings))
    expected, found = matrices
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("checks", ["quick", pytest.param("full", marks=pytest.mark.slow)])
def test_self_checks(checks: str, device: torch.device) -> None:
    expected, found = (evaluated(one, "pgd", checks=checks, limit=6) for one in (CPU, device))
    assert [str(one) for one in found.warnings] == [str(one) for one in expected.warnings]
    assert found.extra == expected.extra


class Interrupted:
    """A step of noise for each image; after `left` batches somebody presses Ctrl-C."""

    left = 1

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        if not self.left:
            raise KeyboardInterrupt
        Interrupted.left -= 1
        return (x + target.noise.uniform(x.shape[1:], -0.03, 0.03)).clamp(0, 1)


@pytest.mark.parametrize("home", ["cpu", "elsewhere"])
def test_an_evaluation_goes_on_elsewhere(
    home: str, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches that are in the journal are not attacked again, wherever they were written."""
    first, second = (CPU, device) if home == "cpu" else (device, CPU)
    plans = {"noise": AttackPlan(Interrupted(), CATALOG.create("objective", "ce"))}

    monkeypatch.setattr(Interrupted, "left", 100)
    expected = evaluated(CPU, plans)
    batches = 100 - Interrupted.left
    assert batches > 1
    Interrupted.left = 1
    with pytest.raises(KeyboardInterrupt):
        evaluated(first, plans, journal=tmp_path / "journal")
    Interrupted.left = batches - 1
    assert_same_verdicts(evaluated(second, plans, journal=tmp_path / "journal"), expected)
    assert Interrupted.left == 0


def test_a_module_runs_where_it_is(device: torch.device) -> None:
    """`device` need not be said, and data may be anywhere."""
    net = tiny_net().eval()
    with torch.no_grad():
        y = net(BATCH.x).argmax(1)
    expected = rkd.evaluate(net, (BATCH.x, y), "pgd", checks="off")
    moved = copy.deepcopy(net).to(device)
    with untouched(moved):
        found = rkd.evaluate(moved, (BATCH.x.to(device), y), "pgd", checks="off")
    assert found.accuracy("pgd") == expected.accuracy("pgd")
    moved.arch.to("cpu")
    with pytest.raises(rkd.RkdError, match=f"the module is on cpu and {device.type}"):
        rkd.evaluate(moved, (BATCH.x, y), "pgd")

"""The engine off the CPU: attacks run on a folded copy, as a rule, and come to what they do on the net itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rkd.core.trainer import Run

from .runs import CPU, assert_same, run_on, state_of, train_an_epoch
from .test_evaluation import evaluated


def copies_of(run: Run) -> list[str]:
    return run.student.accelerator.choices()  # type: ignore[attr-defined]


def moved(run: Run) -> Tensor:
    """What an epoch adds to the weights."""
    before = [weight.detach().cpu().clone() for weight in run.student.net.parameters()]
    train_an_epoch(run)
    after = [weight.detach().cpu() for weight in run.student.net.parameters()]
    return torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)])


@pytest.mark.parametrize(
    "settings",
    [{}, {"student": {"model": "small-cnn", "width": 4, "conversions": {"aux-bn": {}}}}, {"precision": "bf16"}],
    ids=["plain student", "aux-bn", "bf16"],
)
def test_trained_through_the_folded_copy(settings: dict[str, Any], device: torch.device) -> None:
    """The rule's copy is the one that `--engine folded` forces on a CPU: its numbers, bit for bit, and no wait once it
    has been compared with its net."""
    run = run_on(device, "trades", engine="auto", **settings)
    train_an_epoch(run)
    (name,) = set(copies_of(run))
    assert name.startswith("folded") and "fused" not in name
    forced = "channels-last" if "channels last" in name else "folded"
    expected = run_on(CPU, "trades", engine=forced, **settings)
    train_an_epoch(expected)
    assert copies_of(expected) == [name]
    assert_same(state_of(run), state_of(expected))
    assert train_an_epoch(run) == []


def test_near_the_net_itself(device: torch.device) -> None:
    settings = {"optimizer": {"lr": 0.01}}
    plain = moved(run_on(CPU, "trades", engine="plain", **settings))
    run = run_on(device, "trades", engine="auto", **settings)
    found = moved(run)
    assert copies_of(run) == ["folded"]
    assert float((found - plain).norm() / plain.norm()) < 0.02


@pytest.mark.parametrize("engine", ["fused", "channels-last"])
def test_every_backend_can_be_asked_for(engine: str, device: torch.device) -> None:
    """What cannot be made on the device is told, and the net runs as it is."""
    settings = {"optimizer": {"lr": 0.01}}
    plain = moved(run_on(CPU, "trades", engine="plain", **settings))
    found = moved(run_on(device, "trades", engine=engine, **settings))
    assert float((found - plain).norm() / plain.norm()) < 0.02


@pytest.mark.parametrize("engine", ["auto", "bfloat16"])
@pytest.mark.parametrize("attack", ["autoattack", "square"])
def test_evaluations_confirm_on_the_net(attack: str, engine: str, device: torch.device) -> None:
    expected = evaluated(CPU, attack)
    found = evaluated(device, attack, engine=engine)
    assert found.outcomes[attack].about["engine"].startswith("folded")
    assert torch.equal(found.clean, expected.clean)
    assert torch.equal(found.attacks[attack], expected.attacks[attack])

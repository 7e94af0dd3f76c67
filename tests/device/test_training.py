"""Training on a device that is no CPU: the CPU's numbers bit for bit, and a host that never waits within a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rkd import hookimpl
from rkd.core.errors import TrainingFailed
from rkd.core.trainer import Run, fit
from rkd.nets.net import NetTeacher
from rkd.training.teacher_cache import cached_teachers

from .runs import CATALOG, CPU, TRAINING, assert_same, run_on, short, state_of, train_an_epoch

WITHOUT_WAITING = ["fgsm", "pgd", "cw", "mifgsm", "pgd-sat"]
"""The attacks that training uses. The others let samples leave early, and have to know which."""


def train_on_both(device: torch.device, loss: str, waits: int = 0, **settings: Any) -> None:
    """Two steps on the CPU, two on the device, whose host waits so often."""
    expected = run_on(CPU, loss, **settings)
    train_an_epoch(expected)
    run = run_on(device, loss, **settings)
    waited = train_an_epoch(run)
    assert len(waited) == waits, waited
    assert all(weight.device == device for weight in run.student.net.state_dict().values())
    assert_same(state_of(run), state_of(expected))


QUICK = ("mtard-anl", "adaad", "peeraid", "adr", "fair-rslad")
"""Losses of the quick set: teachers, a search through one, a companion that learns, one that follows, a listener."""


@pytest.mark.parametrize(
    "loss", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CATALOG.names("loss")]
)
def test_every_loss(loss: str, device: torch.device) -> None:
    train_on_both(device, loss)


@pytest.mark.parametrize("attack", WITHOUT_WAITING)
def test_attacks_that_training_uses(attack: str, device: torch.device) -> None:
    train_on_both(device, "pgd-at", attack={"name": attack, **short(attack)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"student": {"model": "small-cnn", "width": 4, "conversions": {"aux-bn": {}}}},
        {"student": {"model": "small-cnn", "width": 4, "conversions": {"aux-bn": {"joint": True}}}},
        {"extensions": {"ema": {}}},
        {"extensions": {"awp": {}}},
        {"extensions": {"swa": {"since": 0}}},
        {"grad_accumulation": 3},
        {"augments": {"crop": {}, "flip": {}, "cutout": {}}},
        {"augments": {"idbh": {}, "autoaugment": {}}},
        {"optimizer": {"clip_gradient": 0.1}},
        {"optimizer": {"name": "adam"}},
        {"optimizer": {"name": "adamw"}},
        {"optimizer": {"nesterov": True}},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_what_surrounds_a_loss(settings: dict[str, Any], device: torch.device) -> None:
    train_on_both(device, "mtard-anl", **settings)


def test_statistics_of_averaged_weights(device: torch.device) -> None:
    kept = []
    for where in (CPU, device):
        run = run_on(where, "ce", extensions={"swa": {"since": 0}})
        train_an_epoch(run)
        kept.append({name: value.cpu() for name, value in run.eval_net().state_dict().items()})
    assert_same(*kept)


@pytest.mark.slow
@pytest.mark.parametrize("augments", [{}, {"flip": {}}])
@pytest.mark.parametrize("parts", [1, 2])
def test_cached_teachers(augments: dict[str, Any], parts: int, device: torch.device) -> None:
    """Three epochs: answers are looked up, and new ones stored, without waiting for them."""
    runs = []
    for where in (CPU, device):
        run = run_on(where, "rslad", augments=augments, grad_accumulation=parts, epochs=3)
        run.teachers = {role: NetTeacher(teacher.net, role) for role, teacher in run.teachers.items()}
        with cached_teachers(run, "on", roles=["robust"]):
            for run.state.epoch in range(3):
                assert train_an_epoch(run) == []
            asked, looked_up = run.teachers["robust"].counts
        assert looked_up > 0 and asked + looked_up == 3 * TRAINING
        runs.append(state_of(run))
    assert_same(*runs)


@pytest.mark.parametrize("loss", ["ce", "rslad"])
def test_soft_labels(loss: str, device: torch.device) -> None:
    train_on_both(device, loss, augments={"mixup": {"classes": 10}})


@pytest.mark.parametrize("on_nan", ["skip", "rollback"])
def test_a_step_that_may_be_undone_is_waited_for(on_nan: str, device: torch.device) -> None:
    train_on_both(device, "ce", waits=2, on_nan=on_nan)


def test_float16(device: torch.device) -> None:
    """The CPU has no training in float16: near what it does in float32, and an overflow moves nothing."""
    settings = {"optimizer": {"clip_gradient": 1.0, "lr": 0.01}}
    expected = run_on(CPU, "rslad", **settings)
    before = weights_of(expected)
    train_an_epoch(expected)
    run = run_on(device, "rslad", precision="fp16", **settings)
    assert run.backward.scaler is not None
    run.backward.scaler = torch.amp.GradScaler(
        device.type, 2.0**12
    )  # what a training comes to after its first overflows
    assert train_an_epoch(run) == []
    moved, wanted = weights_of(run) - before, weights_of(expected) - before
    assert float((moved - wanted).norm() / wanted.norm()) < 0.05
    over = run_on(device, "rslad", precision="fp16")
    over.backward.scaler = torch.amp.GradScaler(device.type, 2.0**100)
    train_an_epoch(over)
    assert torch.equal(weights_of(over), before) and over.backward.scaler.get_scale() < 2.0**100


def weights_of(run: Run) -> Tensor:
    return torch.cat([weight.detach().cpu().flatten() for weight in run.student.net.parameters()])


class Poison:
    """Makes a weight infinite after some step: the next one's loss is not a number."""

    def __init__(self, step: int) -> None:
        self.left = step

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        self.left -= 1
        if not self.left:
            with torch.no_grad():
                next(run.student.net.parameters()).mul_(float("inf"))


@pytest.mark.parametrize("on_nan", ["stop", "skip", "rollback"])
def test_a_loss_that_is_not_finite(on_nan: str, device: torch.device) -> None:
    """It ends the training with the words that it ends with on the CPU."""
    said = []
    for where in (CPU, device):
        run = run_on(where, "ce", on_nan=on_nan, epochs=2)
        run.hooks.register(Poison(2))
        with pytest.raises(TrainingFailed) as error:
            fit(run)
        said.append(str(error.value))
    assert said[0] == said[1] and "epoch 2" in said[0]

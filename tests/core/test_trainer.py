"""fit(): one plain loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import Refused, TrainingFailed
from rkd.core.step import Step
from rkd.core.trainer import fit, train_step
from rkd.registry.schedules import Drops, Ramp
from rkd.testing import OneStep, tiny_batch, tiny_run, untouched
from rkd.training.dry_run import dry_step

from .losses import Adversarial, Clean, Setter, weights


def test_update_is_sgd_by_hand() -> None:
    """The weights after one step, from the gradient of the weighted loss."""
    run = tiny_run(Clean(), lr=0.1)
    twin = copy.deepcopy(run.student)
    batch = tiny_batch()
    before = weights(run)
    train_step(run, batch)
    loss = 5 * ops.cross_entropy(twin.logits({"clean": batch.x}, "train")["clean"], batch.y).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(twin.net.parameters()))])
    assert torch.allclose(weights(run), before - 0.1 * gradient, atol=1e-6)


def test_gradients_are_clipped() -> None:
    run = tiny_run(Clean({"a": 1000.0}), lr=1.0, clip_gradient=0.01)
    before = weights(run)
    train_step(run, tiny_batch())
    assert float((weights(run) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_fit_is_a_plain_loop() -> None:
    """Two epochs, by hand: the same batches, the same learning rates, the same weights."""
    run = tiny_run(Clean(), epochs=2, lr=0.2, lr_schedule=Ramp(1, 0))
    net = copy.deepcopy(run.student)
    optimizer = torch.optim.SGD(net.net.parameters(), 0.2, momentum=0.9)
    for epoch in range(2):
        for number, batch in enumerate(run.loader.batches(epoch)):
            optimizer.param_groups[0]["lr"] = 0.2 * (1 - (epoch + number / 2) / 2)
            optimizer.zero_grad()
            (5 * ops.cross_entropy(net.logits({"clean": batch.x}, "train")["clean"], batch.y).mean()).backward()
            optimizer.step()
    fit(run)
    assert torch.allclose(weights(run), torch.cat([p.detach().flatten() for p in net.net.parameters()]), atol=1e-6)


def test_fit_touches_no_random_state_and_is_repeatable() -> None:
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = tiny_run(Adversarial(), attack=OneStep("train"), epochs=2)
        run.student.net.arch.head = torch.nn.Sequential(torch.nn.Dropout(0.3), run.student.net.arch.head)
        with untouched():
            fit(run)
        ends.append(weights(run))
    assert torch.equal(*ends)


def test_history() -> None:
    run = tiny_run(
        Clean(), epochs=3, lr=0.1, lr_schedule=Drops(1.0, (2 / 3,)),
        schedulers={"s": Setter({"weight.b": torch.tensor(0.5), "T.robust": 2.0, "class_weights": torch.ones(4)})},
    )  # fmt: skip
    fit(run)
    assert [line["epoch"] for line in run.state.history] == [0, 1, 2]
    assert [line["lr"] for line in run.state.history] == pytest.approx([0.1, 0.1, 0.01])
    for line in run.state.history:
        assert line["loss"] == pytest.approx(2 * line["loss.a"] + 0.5 * line["loss.b"], rel=1e-4)
        assert (line["weight.a"], line["weight.b"], line["T.robust"]) == (2.0, 0.5, 2.0)
        assert "class_weights" not in line, "only single numbers"
        assert all(isinstance(value, (int, float)) for value in line.values())


def test_lr_scale_is_the_schedules() -> None:
    seen = []
    setter = Setter(lambda step: seen.append((step.progress, step.lr_scale)) or {})
    run = tiny_run(Clean(), epochs=2, lr=0.3, lr_schedule=Drops(1.0, (0.5,)), schedulers={"s": setter})
    fit(run)
    assert seen == [(0.0, 1.0), (0.25, 1.0), (0.5, 0.1), (0.75, 0.1)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(bad: float) -> None:
    class Breaks(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            factor = bad if step.progress > 0.4 else 1.0
            return {"a": factor * ops.cross_entropy(step.student("clean"), step.y)}

    run = tiny_run(Breaks({}), epochs=2)
    with pytest.raises(TrainingFailed, match=r"epoch 2, batch 1.*a = .*--lr"):
        fit(run)


def test_weights_that_are_not_finite_stop_the_training() -> None:
    """sqrt at 0 has an infinite gradient and a finite value: the last step of a training would go unnoticed."""

    class Root(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            z = step.student("clean")
            return {"a": (z * 0).sum(1).sqrt() if step.progress == since else ops.cross_entropy(z, step.y)}

    since = 0.0
    with pytest.raises(Refused, match="a gradient is not finite"):
        dry_step(tiny_run(Root({})))
    since = 0.5
    with pytest.raises(TrainingFailed, match="a weight is no longer finite after epoch 1"):
        fit(tiny_run(Root({}), epochs=1))

"""HAT against plain float64 loops: helper images beyond the ball, labels of a clean net on attacked images."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.hat import Hat
from rkd.plugins.methods.trades import Trades
from rkd.plugins.objectives.kl import kl_student
from rkd.registry.catalog import Catalog
from rkd.registry.schedules import Ramp
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run
from rkd.testing.tiny import CLASSES
from rkd.training.accumulation import Accumulation
from rkd.workflow.resolve import resolve

from .by_hand import Setting, difference, kl, onehot, softmax


@pytest.mark.parametrize(("beta", "gamma", "h"), [(2.5, 0.5, 2.0), (1.0, 1.0, 3.5), (6.0, 0.0, 1.0)])
def test_loss_and_gradient(beta: float, gamma: float, h: float) -> None:
    s = Setting(Hat(beta, gamma=gamma, h=h), objective=kl_student)
    x, x_adv = s.images["clean"], s.images["adv"]
    s.images["helper"] = x + h * (x_adv - x)
    assert h == 1 or float(s.images["helper"].min()) < 0, "the helper images are not clamped"
    values, rows, labels = [], {"clean": [], "adv": [], "helper": []}, []
    everyone = (s.student(), s.student("adv"), s.student("helper"), s.teacher("clean", "adv"), s.y)
    for z, z_adv, z_helper, t, y in zip(*everyone, strict=True):
        p, q, r = softmax(z), softmax(z_adv), softmax(z_helper)
        label = max(range(CLASSES), key=t.__getitem__)
        labels.append(label)
        distance = kl(p, q)
        values.append(-math.log(p[y]) + beta * distance - gamma * math.log(r[label]))
        rows["adv"].append(difference(q, p, beta))
        rows["helper"].append(difference(r, onehot(label), gamma))
        through = [beta * a * (math.log(a / b) - distance) for a, b in zip(p, q, strict=True)]
        rows["clean"].append([a + b for a, b in zip(difference(p, onehot(y)), through, strict=True)])
    assert labels != s.y
    s.expect(values, rows)


def test_without_the_helper_term_it_is_trades() -> None:
    losses = [float(Setting(loss, objective=kl_student).loss) for loss in (Hat(6.0, gamma=0.0), Trades(6.0))]
    assert losses[0] == losses[1]


def test_the_search_comes_before_the_batch_moves_the_running_statistics() -> None:
    plain = tiny_run(Hat(), attack=OneStep(), objective=kl_student)
    batch = tiny_batch()
    expected = plain.step(batch).image("adv")
    step = plain.step(batch)
    plain.total_loss(step)
    assert torch.equal(step.image("adv"), expected)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    ends = []
    for parts in ({}, {"backward": Accumulation(micro_batches=4)}):
        run = tiny_run(Hat(), attack=OneStep(), **parts)
        run.student = NetStudent(tiny_net(LinearNet, seed=3))
        run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.2)
        train_step(run, tiny_batch())
        ends.append(list(run.student.net.parameters()))
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_missing_helper_net_is_of_the_students_architecture(catalog: Catalog) -> None:
    table = {"loss": {"name": "hat"}, "student": {"model": "resnet8"}, "data": {"name": "digits"}}
    (teacher,) = resolve(table, catalog).teachers
    assert (teacher.role, teacher.model) == ("clean", "resnet8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": Ramp(1, -1)}, "gamma must"),
        ({"h": 0.5}, "h must be at least"),
        ({"beta": -1}, "beta"),
    ],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Hat(**options)

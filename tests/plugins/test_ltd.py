"""LTD against plain float64 loops: the teacher's temperature makes the labels, the student's is 1."""

from __future__ import annotations

import math

import pytest

from rkd.plugins.methods.ltd import Ltd, LtdAt
from rkd.plugins.methods.pgd_at import AdversarialTraining
from rkd.plugins.methods.trades import Trades
from rkd.plugins.objectives.kl import kl_student
from rkd.registry.schedules import Ramp
from rkd.testing import OneStep, tiny_batch, tiny_run

from .test_methods import Setting, difference, kl, softmax


def cross_entropy(p: list[float], q: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(("T", "beta"), [(5.0, 6.0), (0.5, 1.0), (1.0, 0.0)])
def test_over_trades(T: float, beta: float) -> None:
    """The clean answer is detached nowhere: its gradient is that of both terms."""
    s = Setting(Ltd(T, beta), objective=kl_student)
    values, adv, clean = [], [], []
    for z, z_adv, t in zip(s.student(), s.student("adv"), s.teacher("clean"), strict=True):
        p, q, q_adv = softmax(t, T), softmax(z), softmax(z_adv)
        distance = kl(q, q_adv)
        values.append(cross_entropy(p, q) + beta * distance)
        adv.append(difference(q_adv, q, beta))
        through = [beta * a * (math.log(a / b) - distance) for a, b in zip(q, q_adv, strict=True)]
        clean.append([a + b for a, b in zip(difference(q, p), through, strict=True)])
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize("T", [5.0, 0.5])
def test_over_adversarial_training(T: float) -> None:
    s = Setting(LtdAt(T))
    values, adv = [], []
    for z_adv, t in zip(s.student("adv"), s.teacher("clean"), strict=True):
        p, q = softmax(t, T), softmax(z_adv)
        values.append(cross_entropy(p, q))
        adv.append(difference(q, p))
    s.expect(values, {"adv": adv})


@pytest.mark.parametrize(("method", "beneath"), [(Ltd, Trades), (LtdAt, AdversarialTraining)])
def test_a_teacher_that_knows_the_labels_makes_it_the_method_beneath(method, beneath) -> None:
    run = tiny_run(method(), attack=OneStep())
    step = run.step(tiny_batch())
    certain = step.teacher().zero_()
    certain[range(8), step.y] = 1e4
    loss = run.total_loss(step)
    plain = tiny_run(beneath(), attack=OneStep())
    assert float(loss.detach()) == pytest.approx(float(plain.total_loss(plain.step(tiny_batch())).detach()), rel=1e-5)


def test_the_temperature_may_be_a_schedule() -> None:
    run = tiny_run(LtdAt(Ramp(1, 9)), attack=OneStep(), epochs=2)
    run.state.epoch = 1
    step = run.step(tiny_batch())
    run.total_loss(step)
    p, q = softmax(step.teacher()[0].tolist(), 5.0), softmax(step.student("adv")[0].tolist())
    assert float(run.terms["adv"][0]) == pytest.approx(cross_entropy(p, q), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ltd(T=0.0), "T must be at least 0.001, got 0"),
        (lambda: LtdAt(T=-5.0), "T must be at least 0.001"),
        (lambda: Ltd(beta=-1.0), "beta must be at least 0"),
    ],
)
def test_numbers_that_make_no_sense(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()

"""MART against a plain loop, in the paper's and in the code's form."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.errors import Refused
from rkd.plugins.methods.mart import Mart
from rkd.testing import OneStep, tiny_batch, tiny_run
from rkd.testing.tiny import CLASSES

from .by_hand import Setting, difference, kl, onehot, softmax


@pytest.mark.parametrize(
    ("beta", "offset", "smoothing"), [(5.0, 1e-4, 0.0), (6.0, 0.0, 0.0), (0.0, 0.3, 0.0), (5.0, 1e-4, 0.4)]
)
def test_mart(beta: float, offset: float, smoothing: float) -> None:
    """Gradients flow through both sides of the divergence, and through the weight of each sample."""
    s = Setting(Mart(beta, offset, smoothing))
    values, adv, clean = [], [], []
    for z, z_adv, y in zip(s.student(), s.student("adv"), s.y, strict=True):
        p, q = softmax(z), softmax(z_adv)
        k = max((k for k in range(CLASSES) if k != y), key=lambda k: q[k])
        rest, distance, wrong = 1 - q[k] + offset, kl(p, q), 1 - p[y]
        target = [(1 - smoothing) * share + smoothing / CLASSES for share in onehot(y)]
        ce = -sum(t * math.log(v) for t, v in zip(target, q, strict=True))
        values.append(ce - math.log(rest) + beta * wrong * distance)
        nearest = difference(onehot(k), q, q[k] / rest)
        adv.append([sum(g) for g in zip(difference(q, target), nearest, difference(q, p, beta * wrong), strict=True)])
        through = [beta * wrong * a * (math.log(a / b) - distance) for a, b in zip(p, q, strict=True)]
        weight = difference(p, onehot(y), beta * distance * p[y])
        clean.append([a + b for a, b in zip(through, weight, strict=True)])
    s.expect(values, {"adv": adv, "clean": clean})


def far_off(offset: float) -> tuple[float, float]:
    """The boosted half of the loss and its gradient where a wrong class has all the probability."""
    z = torch.tensor([[0.0, 60.0, 1.0]], requires_grad=True)
    value = Mart(offset=offset)._against_the_nearest(z, torch.tensor([[0]]))
    value.sum().backward()
    return float(value.detach()), float(z.grad[0, 1])


def test_the_offset_bounds_the_loss_and_ends_its_gradient() -> None:
    value, gradient = far_off(1e-4)
    assert value == pytest.approx(-math.log(1e-4), rel=1e-5) and gradient < 1e-10
    value, gradient = far_off(0.0)
    assert value == pytest.approx(60 - math.log(1 + math.e), rel=1e-5) and gradient == pytest.approx(1, rel=1e-5)


def test_the_clean_batch_runs_first() -> None:
    run = tiny_run(Mart(), attack=OneStep())
    seen = []
    run.student.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]) if net.training else None)
    step = run.step(tiny_batch())
    run.total_loss(step)
    assert [x is step.image(view) for x, view in zip(seen, ("clean", "adv"), strict=True)] == [True, True]


def test_needs_hard_labels() -> None:
    with pytest.raises(Refused, match="hard labels"):
        run = tiny_run(Mart(), attack=OneStep())
        run.total_loss(run.step(tiny_batch(soft=True)))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"beta": -1.0}, "beta"), ({"offset": -1e-4}, "offset"), ({"label_smoothing": 1}, "smoothing")],
)
def test_numbers_that_make_no_sense(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Mart(**options)

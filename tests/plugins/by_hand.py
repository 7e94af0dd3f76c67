"""Methods by hand: one batch, the logits of everybody on it, and gradients, in plain float64 loops.

The student is linear: the gradient by its weights follows from the gradient by its logits, dW = sum_i g_i x_i^T.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from rkd.nets.student import NetStudent
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run
from rkd.testing.tiny import CLASSES, MEAN, STD

Rows = list[list[float]]


def softmax(z: list[float], T: float = 1.0) -> list[float]:
    top = max(z)
    exponentials = [math.exp((v - top) / T) for v in z]
    return [e / sum(exponentials) for e in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def onehot(label: int) -> list[float]:
    return [float(k == label) for k in range(CLASSES)]


def difference(a: list[float], b: list[float], factor: float = 1.0) -> list[float]:
    return [factor * (v - w) for v, w in zip(a, b, strict=True)]


class Setting:
    """One batch with the images that the attack found, and everybody's logits on them as lists of float64."""

    def __init__(self, loss, attack=True, prepare=lambda run: None, **settings) -> None:
        student = NetStudent(tiny_net(LinearNet, seed=3))
        self.run = tiny_run(loss, attack=OneStep() if attack else None, student=student, **settings)
        prepare(self.run)
        self.batch = tiny_batch()
        self.step = self.run.step(self.batch)
        loss_value = self.run.total_loss(self.step)
        loss_value.backward()
        self.loss = loss_value.detach()
        self.images = {"clean": self.batch.x}
        if attack:
            self.images["adv"] = self.step.image("adv")
            assert float((self.images["adv"] - self.batch.x).abs().max()) > 0.02
        self.y = self.batch.y.tolist()

    def logits(self, net, view: str) -> Rows:
        """By hand: normalise, multiply, add."""
        weight = net.arch.weight.detach().double().numpy()
        x = (self.images[view].double().numpy().reshape(len(self.y), -1) - MEAN) / STD
        return (x @ weight.T + net.arch.bias.detach().double().numpy()).tolist()

    def student(self, view: str = "clean") -> Rows:
        return self.logits(self.run.student.net, view)

    def teacher(self, role: str, view: str = "clean") -> Rows:
        return self.logits(self.run.teachers[role].net, view)

    def companion(self, name: str, view: str = "clean") -> Rows:
        return self.logits(self.run.companions[name].net, view)

    def expect(self, values: list[float], gradients: dict[str, Rows]) -> None:
        """The loss is the mean of `values`; `gradients` by the student's logits, per view, of each sample's value."""
        assert float(self.loss) == pytest.approx(sum(values) / len(values), rel=1e-5, abs=1e-6)
        self.expect_gradients(self.run.student.net, gradients)

    def expect_gradients(self, net, gradients: dict[str, Rows]) -> None:
        """The same gradients by the logits of any net."""
        count, weight, bias = len(self.y), 0.0, 0.0
        for view, rows in gradients.items():
            x = (self.images[view].double().numpy().reshape(count, -1) - MEAN) / STD
            for g, image in zip(np.array(rows), x, strict=True):
                weight = weight + np.outer(g, image) / count
                bias = bias + g / count
        arch = net.arch
        assert np.allclose(arch.weight.grad.numpy(), weight, rtol=1e-4, atol=2e-6 * max(1, np.abs(weight).max()))
        assert np.allclose(arch.bias.grad.numpy(), bias, rtol=1e-4, atol=2e-6 * max(1, np.abs(bias).max()))

"""check_model and check_conversion."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rkd import testing
from rkd.nets.student import NetStudent
from rkd.testing import TinyNet, tiny_net

from .conftest import says


def model(change: Callable[[nn.Module], nn.Module] = lambda net: net) -> Callable[..., nn.Module]:
    return lambda shape, classes: change(TinyNet(shape, classes))


class Twice(nn.Module):
    def __init__(self, net: nn.Module, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.after = net, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(x))


class Idle(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.unused = net, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def dirty(net: nn.Module) -> nn.Module:
    net.head.bias.data.fill_(random.random())
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda net: net, ""),
        (lambda net: nn.Sequential(net, nn.Softmax(dim=1)), "returns probabilities"),
        (lambda net: Twice(net, lambda z: (z, z)), "tuple"),
        (lambda net: Twice(net, lambda z: z[:, :3]), "(4, 10)"),
        (lambda net: Twice(net, lambda z: z / 0), "not finite"),
        (lambda net: Twice(net, lambda z: z - z.mean(0)), "depend on the other images"),
        (lambda net: Twice(net, lambda z: z * 0 + 1), "do not depend on the images"),
        (lambda net: Twice(net, lambda z: z.detach()), "not differentiable"),
        (Idle, "do not depend on unused.weight, unused.bias"),
        (dirty, "two nets from one seed differ"),
    ],
)
def test_models(change, word: str) -> None:
    if word:
        says(lambda: testing.check_model(model(change), shape=(3, 8, 8)), word)
    else:
        testing.check_model(model(change), shape=(3, 8, 8))


def test_models_that_draw_elsewhere() -> None:
    def draws(net: nn.Module) -> nn.Module:
        return Twice(net, lambda z: z + torch.rand(1))

    says(lambda: testing.check_model(model(draws), shape=(3, 8, 8)), "random state")


def test_conversions() -> None:
    testing.check_conversion(lambda student: student)
    says(lambda: testing.check_conversion(lambda student: student.net), "must return a NetStudent")

    def other(student: NetStudent) -> NetStudent:
        class Other(NetStudent):
            def deployed(self) -> nn.Module:
                return tiny_net(seed=4)

        return Other(student.net)

    says(lambda: testing.check_conversion(other), "answers clean images differently")
    says(lambda: testing.check_conversion(lambda s: NetStudent(s.net, routed=("clean",))), "net's own norms")

    def flips(student: NetStudent) -> NetStudent:
        student.net.arch.norm.register_forward_hook(lambda module, *_: (module.running_mean.add_(1), None)[1])
        return student

    says(lambda: testing.check_conversion(flips), "the buffers")

"""Depthwise convolutions with a stride run in float32 where bfloat16 is slow, and are the same layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.core.depthwise import StridedInFloat32
from rkd.core.nets import Net

X = torch.rand(4, 6, 9, 9, generator=torch.Generator().manual_seed(0))


def seen_dtype(layer: nn.Conv2d, run) -> torch.dtype:
    """The dtype in which `layer` convolves, as its gradient by the weight tells."""
    seen: list[torch.dtype] = []
    real = torch.conv2d

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is real:
                seen.append(torch.float32 if not torch.is_autocast_enabled("cpu") else torch.bfloat16)
            return func(*args, **(kwargs or {}))

    with Watch():
        run()
    return seen[0]


@pytest.mark.parametrize(
    ("layer", "slow"),
    [
        (nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6), True),
        (nn.Conv2d(6, 12, 3, stride=(1, 2), groups=2), True),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), False),
        (nn.Conv2d(6, 6, 3, stride=2), False),
    ],
)
def test_only_the_slow_layers_are_in_float32(layer: nn.Conv2d, slow: bool) -> None:
    expected = layer(X)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16), StridedInFloat32():
            return layer(X)

    found = run()
    assert found.dtype == torch.bfloat16
    exact = expected.to(torch.bfloat16)
    assert torch.equal(found, exact) is slow, "float32 rounded once, or bfloat16 throughout"
    assert seen_dtype(layer, run) == (torch.float32 if slow else torch.bfloat16)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_called_by_name_and_without_autocast() -> None:
    weight = torch.randn(6, 1, 3, 3)
    expected = nn.functional.conv2d(X, weight, stride=2, groups=6)
    with torch.autocast("cpu", torch.bfloat16), StridedInFloat32():
        found = nn.functional.conv2d(input=X, weight=weight, stride=2, groups=6)
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_a_net_under_autocast_learns() -> None:
    net = Net(nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, groups=6), nn.Flatten(), nn.Linear(96, 3)))
    net.autocast = torch.bfloat16
    net(X).square().sum().backward()
    under = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.autocast = None
    net(X).square().sum().backward()
    for half, parameter in zip(under, net.parameters(), strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, parameter.grad, rtol=0.1, atol=0.1)

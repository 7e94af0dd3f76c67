"""What is slow in bfloat16 on a CPU is computed in another way, and is the same."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from rkd.nets.cpu_bfloat16 import OnCpu
from rkd.nets.net import Net

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
        with torch.autocast("cpu", torch.bfloat16), OnCpu():
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
    with torch.autocast("cpu", torch.bfloat16), OnCpu():
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


def relu_of(call, x: torch.Tensor, fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    with OnCpu() if fast else nullcontext():
        y = call(x)
    return y, torch.autograd.grad((y.float() * torch.arange(y.numel()).view(y.shape)).sum(), x)[0]


@pytest.mark.parametrize("call", [nn.functional.relu, torch.relu, nn.ReLU(), nn.ReLU(inplace=True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_relu_and_its_gradient_bit_by_bit(call, dtype: torch.dtype) -> None:
    odd = torch.tensor([0.0, -0.0, 1e-40, -1e-40, torch.inf, -torch.inf, 2.0, -0.5]).repeat(9)
    x = torch.cat([odd, torch.randn(120)]).view(4, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    if getattr(call, "inplace", False):
        other = call
        call = lambda x: other(x * 1)  # noqa: E731
    for one, other_one in zip(relu_of(call, x, True), relu_of(call, x, False), strict=True):
        assert one.dtype == dtype and torch.equal(one, other_one) and one.stride() == other_one.stride()


def test_relu_passes_nan_on() -> None:
    """A training that has diverged must show it."""
    x = torch.tensor([[torch.nan, -torch.nan, 1.0]]).to(torch.bfloat16).requires_grad_()
    with OnCpu():
        assert nn.functional.relu(x).isnan().tolist() == [[True, True, False]]


def test_only_a_relu_that_goes_back_is_another() -> None:
    x = X.to(torch.bfloat16).requires_grad_()
    with OnCpu():
        assert "_Relu" in str(torch.relu(x).grad_fn)
        assert "_Relu" not in str(torch.relu(x.float()).grad_fn)
        with torch.no_grad():
            assert torch.relu(x).grad_fn is None
        slope = torch.func.grad(lambda x: torch.relu(x).sum())(x.detach())
    assert torch.equal(slope, torch.ones_like(slope))


def test_relu_may_be_differentiated_again() -> None:
    def twice(fast: bool) -> torch.Tensor:
        x = (X - 0.5).to(torch.bfloat16).requires_grad_()
        with OnCpu() if fast else nullcontext():
            y = torch.relu(x)
        (slope,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    assert torch.equal(twice(True), twice(False))

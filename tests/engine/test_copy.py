"""Folding changes no function: logits and gradients of every kind of net, and what cannot be folded is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.engine.copy import FrozenCopy
from rkd.nets.net import Net
from rkd.registry.catalog import Catalog
from rkd.testing import untouched


def folded(net: nn.Module, example: torch.Tensor) -> nn.Module | None:
    copied = FrozenCopy(net, example)
    return copied.net if copied.folded else None


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def used(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Running statistics and affine parameters as after some training."""
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.2
    net.train()
    for _ in range(3):
        net(x)
    return net.eval()


def same(net: nn.Module, twin: nn.Module, x: torch.Tensor, atol: float = 1e-9) -> None:
    answers = []
    for each in (net, twin):
        z = x.clone().requires_grad_()
        logits = each(z)
        answers.append((logits, torch.autograd.grad(logits.logsumexp(1).sum(), z)[0]))
    for one, other in zip(*answers, strict=True):
        assert torch.allclose(one, other, atol=atol, rtol=1e-7), float((one - other).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"), [("resnet8", 0), ("small-cnn", 0), ("mobilenetv2", 0), ("resnet18", 0), ("wrn10-1", 4),
                       ("preact-resnet18", 8), ("timm:resnet10t", 0), ("torchvision:resnet18", 0),
                       ("timm:mobilenetv3_small_050", 0)],
)  # fmt: skip
def test_models(catalog: Catalog, name: str, left: int) -> None:
    """In float64, where folding leaves nothing but rounding; `left` norms stand before their convolution."""
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net = used(Net(catalog.create("model", name, {})((3, 16, 16), 10), [0.5] * 3, [0.25] * 3), x)
    with untouched(net):
        twin = folded(net, x[:2])
    assert twin is not None and norms(net) > left
    assert norms(twin) == left
    assert not any(p.requires_grad for p in twin.parameters())
    same(net.double(), folded(net, x[:2].double()), x.double())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_weights_that_move_are_seen_by_the_next_copy() -> None:
    net = used(Small(), X)
    first = folded(net, X[:2])
    with torch.no_grad():
        net.conv.weight.mul_(2)
        net.norm.running_mean.add_(1)
    same(net.double(), folded(net, X[:2].double()), X.double())
    assert not torch.allclose(first(X), net.float()(X), atol=1e-3), "a copy is a copy"


def test_without_affine_parameters_and_behind_a_bias() -> None:
    net = Small()
    net.norm = nn.BatchNorm2d(4, affine=False)
    net.train()
    net(X)
    net.eval().double()
    same(net, folded(net, X[:2].double()), X.double())


@pytest.mark.parametrize("how", ["hook", "shared layer", "shared weight", "batch statistics", "parametrized", "other"])
def test_what_cannot_be_folded_is_left_alone(how: str) -> None:
    net = used(Small(), X)
    if how == "hook":
        net.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    elif how == "shared layer":
        net.forward = lambda x: net.head((net.norm(net.conv(x)) + net.conv(x)).mean((2, 3)))
    elif how == "shared weight":
        net.other = nn.Conv2d(3, 4, 3)
        net.other.weight = net.conv.weight
    elif how == "batch statistics":
        net.norm = nn.BatchNorm2d(4, track_running_stats=False)
    elif how == "parametrized":
        nn.utils.parametrizations.weight_norm(net.conv)
    else:
        net.norm = nn.GroupNorm(2, 4)
    assert folded(net, X[:2]) is None


def test_a_net_that_cannot_be_copied() -> None:
    net = used(Small(), X)
    net.generator = (number for number in range(3))
    with pytest.raises(TypeError):
        FrozenCopy(net, X[:2])


def test_it_is_brought_up_to_date_in_place() -> None:
    net = used(Small(), X)
    copied = FrozenCopy(net, X[:2])
    before = [p.data_ptr() for p in copied.net.parameters()]
    net.train()
    net(X + 1)
    with torch.no_grad():
        net.conv.weight.mul_(2)
    net.eval()
    copied.refresh()
    torch.testing.assert_close(copied.net(X), net(X), rtol=1e-4, atol=1e-5)
    assert [p.data_ptr() for p in copied.net.parameters()] == before
    assert not any(p.requires_grad for p in copied.net.parameters())
    assert copied.current()
    net.head = nn.Linear(4, 5)
    assert not copied.current()


class Activated(nn.BatchNorm2d):
    """Batch norm with an activation inside, as timm's."""

    def __init__(self, planes: int, before: bool = False) -> None:
        super().__init__(planes)
        self.act, self.before = nn.PReLU(), before

    def forward(self, x):
        x = 2 * x if self.before else x
        x = nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return self.act(x)


@pytest.mark.parametrize("before", [False, True])
def test_what_a_norm_does_besides_stays(before: bool) -> None:
    """After it; where it does anything before, it is left alone."""
    net = Small()
    net.norm = Activated(4, before)
    net = used(net, X).double()
    copied = FrozenCopy(net, X[:2].double())
    assert copied.folded == ([] if before else [("conv", "norm")])
    same(net, copied.net, X.double())
    with torch.no_grad():
        net.norm.act.weight.mul_(-3)
        net.norm.weight.add_(1)
    copied.refresh()
    same(net, copied.net, X.double())

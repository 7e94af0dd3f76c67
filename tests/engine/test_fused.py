"""Fused convolutions are the layers they are made of: outputs, gradients, weights that move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkd.engine import ending
from rkd.engine.backends import Backend, FastCopy, rule
from rkd.engine.ending import Ending
from rkd.engine.fused import RELU, Fused, fuse
from rkd.nets.cpu_bfloat16 import packs
from rkd.registry.catalog import Catalog
from rkd.testing import untouched

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

X = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Joined(nn.Module):
    """Sums and activations of all kinds, each seen by one or by several."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.d, self.e, self.f = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.relu, self.relu6 = nn.ReLU(inplace), nn.ReLU6(inplace)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = self.relu(self.a(x) + self.b(x))  # a sum of two convolutions
        both = self.relu6(self.d(both) + both)  # a residual with ReLU6, which a sum cannot take in
        seen_twice = self.c(x)
        both = both + F.relu(seen_twice) - seen_twice
        out = self.e(both)
        out += both  # in place
        out = F.relu6(self.f(F.relu(out))) + out
        out = out + self.d(out).mean((2, 3), keepdim=True)  # another shape, and a layer used twice
        return self.linear(out.mean((2, 3)))


def gradients(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = net(x)
    (found,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    return logits.detach(), found


def same(net: nn.Module, other: nn.Module, x: Tensor = X) -> None:
    for found, expected in zip(gradients(other, x), gradients(net, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_whatever_follows_a_convolution(inplace: bool) -> None:
    torch.manual_seed(3)
    net = Joined(inplace).eval().requires_grad_(False)
    fused, layers = fuse(net, X[:2])
    same(net, fused)
    *convolutions, end = layers
    assert isinstance(end, Ending)
    activations = [layer.activation.name for layer in convolutions]
    assert activations == ["relu", "none", "none", "none", "none", "hardtanh", "none"]
    assert len({id(layer.layer) for layer in convolutions}) == 6
    left = {node.target for node in fused.graph.nodes}
    assert not left & {"a", "b", "c", "d", "e", "f", "relu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "small-cnn", "mobilenetv2", "wrn10-1", "preact-resnet18", "resnet18"])
def test_every_net(catalog: Catalog, name: str) -> None:
    net = catalog.create("model", name, {})((3, 12, 12), 10)
    net.train()
    net(X)
    net.eval().requires_grad_(False)
    with untouched(net):
        found = FastCopy(Backend(fused=True), net, None, X)
    assert found.name.endswith("fused")
    same(net, found.logits)
    assert not any(type(node) is nn.BatchNorm2d for node in found.run.modules()) or name in (
        "wrn10-1",
        "preact-resnet18",
    )


def test_a_convolution_that_is_watched_or_pads_otherwise_is_left() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 3),
    ).eval().requires_grad_(False)  # fmt: skip
    net[4].register_forward_hook(lambda module, inputs, output: output * 2)
    fused, layers = fuse(net, X[:2])
    assert [layer.layer for layer in layers] == [net[6]]
    same(net, fused)


class Ends(nn.Module):
    """A convolution, and an end in one of many ways."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool, self.flat = nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()
        self.end, self.linear = end, nn.Linear({"mean": 4, "mean of one": 40, "dims": 4}.get(end, 24), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.end == "module":
            x = self.flat(self.pool(x))
        elif self.end == "function":
            x = torch.flatten(F.adaptive_avg_pool2d(x, (2, 3)), 1)
        elif self.end == "window":
            x = F.avg_pool2d(x, (5, 4), stride=(4, 3), padding=(0, 1)).flatten(1)
        elif self.end == "mean":
            x = x.mean((2, 3))
        elif self.end == "dims":
            x = torch.mean(x, (-2, -1))
        elif self.end == "mean of one":
            x = x.mean(3).flatten(1)
        elif self.end == "seen twice":
            x = self.pool(x).flatten(1)
            return self.linear(x) + x.sum()
        elif self.end == "maximum":
            x = F.adaptive_max_pool2d(x, (2, 3)).flatten(1)
        elif self.end == "activated":
            return F.relu(self.linear(self.pool(x).flatten(1)))
        return self.linear(x)


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("module", True), ("function", True), ("window", True), ("mean", True), ("dims", True), ("mean of one", False),
        ("seen twice", False), ("maximum", False), ("activated", False),
    ],
)  # fmt: skip
def test_pooling_and_the_last_layer_are_one_product(end: str, found: bool) -> None:
    torch.manual_seed(4)
    net = Ends(end).eval().requires_grad_(False)
    fused, layers = fuse(net, X[:2])
    assert isinstance(layers[-1], Ending) is found
    same(net, fused)
    with torch.no_grad():
        net.linear.weight.mul_(-2)
        net.linear.bias.add_(1)
    for layer in layers:
        layer.take()
    same(net, fused)


def test_a_product_of_many_pixels_and_classes_is_left(monkeypatch) -> None:
    monkeypatch.setattr(ending, "MOST", 5 * 4 * 100 - 1)
    assert not isinstance(fuse(Ends("mean").eval(), X[:2])[1][-1], Ending)
    monkeypatch.setattr(ending, "MOST", 5 * 4 * 100)
    assert isinstance(fuse(Ends("mean").eval(), X[:2])[1][-1], Ending)


def test_weights_that_moved_are_taken() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    net.eval().requires_grad_(False)
    fused, layers = fuse(net, X[:2])
    same(net, fused)
    with torch.no_grad():
        net[0].weight.mul_(-1)
        net[0].bias.add_(1)
    layers[0].take()
    same(net, fused)


def test_without_gradient_and_never_twice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval().requires_grad_(False)
    fused, _ = fuse(net, X[:2])
    with torch.no_grad():
        torch.testing.assert_close(fused(X), net(X))
    with torch.inference_mode():
        torch.testing.assert_close(fused(X), net(X))
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_nothing_to_fuse_is_no_way_of_its_own() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).eval()
    assert FastCopy(Backend(fused=True), net, None, X).name == "plain"
    assert not any(isinstance(module, Fused) for module in FastCopy(Backend(fused=True), net, None, X).run.modules())


def test_only_where_onednn_is() -> None:
    net = nn.Conv2d(1, 1, 1)
    assert rule("auto", net, torch.device("cpu")).fused
    assert rule("auto", net, torch.device("cpu"), low=True).fused is packs()
    assert rule("auto", net, torch.device("cuda"), low=True) == Backend(channels_last=False, dtype="bfloat16 inside")


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_goes_back_bit_by_bit_as_torchs(here: bool, dtype: torch.dtype) -> None:
    """Zeros of both signs, numbers too small to be normal, and infinity among the outputs."""
    odd = torch.tensor([0.0, -0.0, 1e-40, 1e-38, torch.inf, 3.0, 2.0, 0.5])
    y = odd.repeat(12).view(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    g = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    g = g.contiguous(memory_format=torch.channels_last)
    expected = torch.ops.aten.threshold_backward(g, y, 0)
    kept = y.clone()
    found = RELU.backward(g, y, here)
    assert found.dtype == dtype and torch.equal(found, expected) and found.stride() == expected.stride()
    assert (found.data_ptr() == g.data_ptr()) is here
    assert torch.equal(y.nan_to_num(), kept.nan_to_num())

"""A fused net is the layers it is made of: outputs, gradients, weights that move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkd.engine.backends import Backend, FastCopy
from rkd.engine.fusion import FusedGraph
from rkd.engine.onednn import FusedConv, PadShortcut, PooledHead
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


def has_head(net: nn.Module) -> bool:
    return any(isinstance(module, PooledHead) for module in net.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_whatever_follows_a_convolution(inplace: bool) -> None:
    torch.manual_seed(3)
    net = Joined(inplace).eval().requires_grad_(False)
    graph = FusedGraph(net, X[:2])
    fused, layers = graph.net, graph.layers
    same(net, fused)
    assert has_head(fused)
    activations = [layer.activation.name for layer in layers]
    assert activations == ["relu", "none", "none", "none", "none", "hardtanh", "none"]
    assert len({id(layer.layer) for layer in layers}) == 6
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
    graph = FusedGraph(net, X[:2])
    fused, layers = graph.net, graph.layers
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
def test_pooling_and_the_last_layer_are_one_step(end: str, found: bool) -> None:
    torch.manual_seed(4)
    net = Ends(end).eval().requires_grad_(False)
    graph = FusedGraph(net, X[:2])
    fused, layers = graph.net, graph.layers
    assert has_head(fused) is found
    same(net, fused)
    with torch.no_grad():
        net.linear.weight.mul_(-2)
        net.linear.bias.add_(1)
    for layer in layers:
        layer.reset()
    same(net, fused)


def test_weights_that_moved_are_taken() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    net.eval().requires_grad_(False)
    graph = FusedGraph(net, X[:2])
    fused, layers = graph.net, graph.layers
    same(net, fused)
    with torch.no_grad():
        net[0].weight.mul_(-1)
        net[0].bias.add_(1)
    layers[0].reset()
    same(net, fused)


def test_without_gradient_and_never_twice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval().requires_grad_(False)
    fused = FusedGraph(net, X[:2]).net
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
    copied = FastCopy(Backend(fused=True), net, None, X)
    assert copied.name == "plain" and not any(isinstance(module, FusedConv) for module in copied.run.modules())


class Branching(nn.Module):
    """A module that branches on values, inside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) if x.sum() > 0 else self.conv(-x))


@pytest.mark.parametrize("inner", [Branching(), nn.Sequential(nn.Conv2d(4, 4, 1), Branching())])
def test_a_module_that_cannot_be_read_is_left(inner: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), inner, nn.Flatten(), nn.Linear(400, 3))
    graph = FusedGraph(net.eval().requires_grad_(False), X[:2])
    assert graph.layers[0].layer is net[0]
    assert len(graph.layers) == (1 if isinstance(inner, Branching) else 2)
    same(net, graph.net)
    with pytest.raises(torch.fx.proxy.TraceError):
        FusedGraph(Branching().eval(), torch.rand(2, 4, 12, 12))


def test_what_gains_where_a_gradient_is_wanted() -> None:
    for activation, gains in ((nn.ReLU(), True), (nn.GELU(), False), (nn.Tanh(), False)):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(400, 3)).eval()
        graph = FusedGraph(net.requires_grad_(False), X[:2])
        assert graph.gains is gains
        same(net, graph.net)


class Pads(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.linear = how, nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "shortcut":
            beside = nn.functional.pad(nn.functional.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, 1))
        elif self.how == "by rows":
            beside = nn.functional.pad(nn.functional.avg_pool2d(x, 1, 2), (1, -1, 0, 0, 0, 1))
        elif self.how == "with ones":
            beside = nn.functional.pad(nn.functional.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, 1), "constant", 1.0)
        elif self.how == "of two pixels":
            beside = nn.functional.pad(nn.functional.avg_pool2d(x, 2, 2), (0, 0, 0, 0, 0, 1))
        else:
            pooled = nn.functional.avg_pool2d(x, 1, 2)
            beside = nn.functional.pad(pooled, (0, 0, 0, 0, 0, 1)) + pooled.sum()
        return self.linear(torch.relu(self.conv(x) + beside).mean((2, 3)))


@pytest.mark.parametrize("how", ["shortcut", "by rows", "with ones", "of two pixels", "seen twice"])
def test_other_shortcuts_are_left(how: str) -> None:
    net = Pads(how).eval().requires_grad_(False)
    fused = FusedGraph(net, X[:2]).net
    same(net, fused)
    assert any(isinstance(module, PadShortcut) for module in fused.modules()) is (how == "shortcut")

"""A tape is the graph of fused layers that it was made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rkd.engine.backends import Backend, FastCopy
from rkd.engine.fused import fuse
from rkd.engine.tape import Tape, taped
from rkd.engine.thinned import Thinned
from rkd.nets.cpu_bfloat16 import packs
from rkd.registry.catalog import Catalog

from .test_fused import Ends, Joined, gradients, same

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

X = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Values that several look at, sums of all kinds, a layer that nobody looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(inputs, 3, 3, padding=1) for inputs in (3, 3, 3))
        self.d, self.e = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2)
        self.relu6 = nn.ReLU6()
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.a(x) + x)  # the images are added themselves
        second = self.b(first) + first
        third = torch.relu(self.c(second) + second)
        self.a(third)
        last = torch.relu(self.d(third) + self.e(third))
        return self.linear(last.mean((2, 3)))


def tape_of(net: nn.Module) -> tuple[Tape, nn.Module]:
    fused, _ = fuse(net.eval().requires_grad_(False), X[:2])
    tape = taped(fused)
    assert tape is not None
    return tape, fused


def test_logits_and_gradients_are_the_graphs() -> None:
    torch.manual_seed(5)
    net = Residual()
    tape, fused = tape_of(net)
    assert len(tape.steps) == 6 and sum(step.other is not None for step in tape.steps) == 4
    same(net, fused)
    same(net, tape)
    with torch.no_grad():
        torch.testing.assert_close(tape(X), net(X))
        torch.testing.assert_close(tape(X[:1]), net(X[:1]))


def test_going_back_twice_gives_the_same_twice() -> None:
    """Gradients are overwritten on the way, what the layers put out is not."""
    tape, _ = tape_of(Residual())
    x = X.clone().requires_grad_()
    logits = tape(x)
    first = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0].clone() for k in (0, 1, 0)]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(tape(x).square().sum(), x, create_graph=True)[0].sum().backward()


def test_without_gradient_no_more_is_kept_than_needed() -> None:
    tape, _ = tape_of(Residual())
    values = [X, *[None] * len(tape.steps)]
    tape.finish(values, 0)
    kept = [number for number, value in enumerate(values) if value is not None]
    assert kept == [4, tape.source], "what nobody looks at, and the last one"


@pytest.mark.parametrize(
    ("net", "whole"),
    [
        (Residual(), True),
        (Ends("mean"), True),
        (Joined(False), False),
        (Ends("maximum"), False),
        (Ends("activated"), False),
    ],
)
def test_only_what_is_nothing_but_fused_layers(net: nn.Module, whole: bool) -> None:
    fused, _ = fuse(net.eval().requires_grad_(False), X[:2])
    assert (taped(fused) is not None) is whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole"),
    [("resnet18", True), ("mobilenetv2", True), ("small-cnn", True), ("resnet8", True), ("wrn10-1", False)],
)
def test_the_nets_that_are_taped(catalog: Catalog, name: str, whole: bool) -> None:
    net = catalog.create("model", name, {})((3, 12, 12), 10)
    net.train()
    net(X)
    found = FastCopy(Backend(fused=True), net.eval().requires_grad_(False), None, X)
    assert any(isinstance(module, Tape) for module in found.run.modules()) is whole
    same(net, found.logits)
    with torch.no_grad():
        next(net.parameters()).mul_(-1)
    found.refresh()
    same(net, found.logits)


@pytest.mark.skipif(not packs(), reason="a processor for which oneDNN packs no bfloat16")
def test_bfloat16(catalog: Catalog) -> None:
    net = catalog.create("model", "mobilenetv2", {})((3, 12, 12), 10).eval().requires_grad_(False)
    found = FastCopy(Backend(fused=True, dtype="bfloat16"), net, None, X)
    logits, slope = gradients(found.logits, X)
    assert logits.dtype == slope.dtype == torch.float32
    assert float((logits - net(X)).abs().max() / net(X).abs().max()) < 0.05


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_a_shortcut_of_every_other_pixel(size: tuple[int, int]) -> None:
    layer = Thinned(2, 1, 3)
    x = torch.rand(4, 3, *size, requires_grad=True)
    expected = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
    assert torch.equal(layer(x), expected) and torch.equal(layer.compute(x.detach()), expected)
    g = torch.rand_like(expected)
    assert torch.equal(layer.slope(g, x.shape), torch.autograd.grad(expected, x, g)[0])


class Pads(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.linear = how, nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "thinned":
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


@pytest.mark.parametrize("how", ["thinned", "by rows", "with ones", "of two pixels", "seen twice"])
def test_other_shortcuts_are_left(how: str) -> None:
    net = Pads(how).eval().requires_grad_(False)
    fused, _ = fuse(net, X[:2])
    same(net, fused)
    assert any(isinstance(module, Thinned) for module in fused.modules()) is (how == "thinned")

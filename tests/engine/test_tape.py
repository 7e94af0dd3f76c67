"""A tape is the graph of fused layers that it was made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rkd.engine.backends import Backend, FastCopy
from rkd.engine.fusion import FusedGraph
from rkd.engine.tape import Tape, taped
from rkd.nets.cpu_bfloat16 import packs
from rkd.registry.catalog import Catalog

from .test_fusion import Ends, Joined, gradients, same

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
    fused = FusedGraph(net.eval().requires_grad_(False), X[:2]).net
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
    fused = FusedGraph(net.eval().requires_grad_(False), X[:2]).net
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

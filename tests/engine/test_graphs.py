"""CUDA graphs, as far as a CPU can tell: a stand-in writes to the same place at each call, as a graph does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rkd.engine.backends import made, wrapped
from rkd.engine.choose import improved
from rkd.engine.graphs import Graphed
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_batch, tiny_net

X = tiny_batch(8, seed=2).x


def captured(function: Any, samples: tuple[Tensor, ...]) -> Any:
    """Like torch.cuda.make_graphed_callables: outputs and gradients lie where they lay the call before."""
    assert samples[0].requires_grad
    output = function(samples[0]).detach().clone()
    gradient = torch.zeros_like(samples[0]).detach()

    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            context.save_for_backward(x)
            with torch.no_grad():
                output.copy_(function(x))
            return output.detach()

        @staticmethod
        def backward(context: Any, g: Tensor) -> Tensor:
            (x,) = context.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                gradient.copy_(torch.autograd.grad(function(x), x, g)[0])
            return gradient.detach()

    return Graph.apply


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", captured)


def asked(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = net(x)
    return logits, torch.autograd.grad(logits.square().sum(), x)[0]


def test_what_was_found_before_is_not_written_over() -> None:
    net = tiny_net().eval().requires_grad_(False)
    fast = Graphed(net, X.shape)
    first, second = asked(fast, X), asked(fast, 1 - X)
    for found, x in ((first, X), (second, 1 - X)):
        for mine, expected in zip(found, asked(net, x), strict=True):
            assert torch.equal(mine, expected)
    with torch.no_grad():
        assert torch.equal(fast(X), net(X))
    assert torch.equal(fast(X[:3]), net(X[:3])), "another shape: as it is"


def test_weights_that_move_are_seen() -> None:
    net = tiny_net().eval().requires_grad_(False)
    fast = Graphed(net, X.shape)
    for parameter in net.parameters():
        parameter.mul_(-0.5)
    assert torch.equal(fast(X), net(X))


def test_it_is_taken_where_it_is_faster_and_the_same(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    from rkd.engine import choose as module

    net = catalog.create("model", "resnet8", {})((3, 16, 16), 10).eval()
    x = torch.rand(6, 3, 16, 16)
    choice = made("folded", net, x)
    told: list[str] = []
    monkeypatch.setattr(module, "race", lambda tries, budget: [1.0, 0.25])
    found = improved(choice, "captured", x, told.append)
    assert found.name == "folded, captured" and found.speedup == 4 and isinstance(found.net, Graphed)
    monkeypatch.setattr(module, "race", lambda tries, budget: [1.0, 0.99])
    assert improved(choice, "captured", x, told.append) is choice

    def wrong(function: Any, samples: Any) -> Any:
        return lambda x: function(x) + 1

    monkeypatch.setattr(module, "race", lambda tries, budget: [1.0, 0.25])
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", wrong)
    assert improved(choice, "captured", x, told.append) is choice, "another function"

    def fails(function: Any, samples: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    assert improved(choice, "captured", x, told.append) is choice
    assert told[-1] == "captured: operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="capturing"):
        wrapped(choice, "captured", x.shape)

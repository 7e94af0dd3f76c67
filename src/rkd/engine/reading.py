"""What can be said of a traced net's nodes: the shapes of their outputs, and which module they call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .fold import plain


class _Shapes(fx.Interpreter):
    def of(self, x: Tensor) -> dict[fx.Node, torch.Size | None]:
        self.found: dict[fx.Node, torch.Size | None] = {}
        with torch.no_grad():
            self.run(x)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = value.shape if isinstance(value, Tensor) else None
        return value


def shapes_of(net: fx.GraphModule, x: Tensor) -> dict[fx.Node, torch.Size | None]:
    """The shape of each node's output for `x`, None where it is no tensor."""
    return _Shapes(net).of(x)


def module_of(node: Any, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if nothing but its own forward runs then."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    found = modules.get(str(node.target))
    return found if found is not None and plain(found) else None


def padding_of(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of padding, of a layer that gives them as numbers."""
    assert not isinstance(layer.padding, str)
    return int(layer.padding[0]), int(layer.padding[1])

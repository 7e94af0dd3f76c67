"""The end of a net, average pooling and a linear layer, as one matrix product.

Both are linear, and pooling is the same for each plane: so the pooled planes' weights can be spread over the pixels
that were pooled. The product has more terms, but nothing is averaged, copied into another order and spread again on
the way back. Same function up to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .reading import module_of

MOST = 2**20
"""Numbers in the matrix at most: for few classes and small planes, where what surrounds the product takes longer."""

_MODULES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_FUNCTIONS = (F.adaptive_avg_pool2d, F.avg_pool2d)


class Ending(nn.Module):
    """`layer` behind `pool`, which takes planes `(B, C, H, W)` to `(B, C, h, w)` or `(B, C)`. `shape`: (C, H, W).

    It reads the layer's weights when it is made and at `take`. `takes`: the dtype of the planes, where that is not its
    own; it may be set.
    """

    takes: torch.dtype | None = None

    def __init__(self, layer: nn.Linear, pool: Any, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape
        _, height, width = shape
        spots = torch.eye(height * width).view(-1, 1, height, width)
        self.pooled = pool(spots).flatten(1).detach()
        """(H W, h w): what each pixel gives to each pooled one."""
        self.take()

    def take(self) -> None:
        """Read the layer's weights, which have moved."""
        weight = self.layer.weight.detach()
        spread = weight.view(len(weight), self.shape[0], -1).double() @ self.pooled.double().t()  # (K, C, H W)
        self._weight = spread.transpose(1, 2).reshape(len(weight), -1).to(weight.dtype)
        self._bias = None if self.layer.bias is None else self.layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1).flatten(1).to(self._weight.dtype), self._weight, self._bias)

    def slope(self, g: Tensor) -> Tensor:
        """The gradient by the planes, channels last, from that by the outputs `g (B, K)`."""
        planes, height, width = self.shape
        found = (g @ self._weight).view(len(g), height, width, planes).permute(0, 3, 1, 2)
        return found if self.takes is None else found.to(self.takes)


def ending(net: fx.GraphModule, shapes: dict[fx.Node, torch.Size | None]) -> Ending | None:
    """Put an `Ending` in the place of pooling, flattening and a linear layer at the end of `net`, if that is its end.

    `shapes`: of each node's output.
    """
    output = next(node for node in net.graph.nodes if node.op == "output")
    modules = dict(net.named_modules())
    last = output.args[0]
    layer = module_of(last, modules)
    if type(layer) is not nn.Linear or len(last.users) != 1:
        return None
    taken = [last, *_before(last, modules)]
    if len(taken) == 1:
        return None
    first = taken[-1]
    source = first.args[0]
    shape = shapes.get(source)
    inner = all(len(node.users) == 1 for node in taken)
    if shape is None or len(shape) != 4 or not inner or layer.out_features * math.prod(shape[1:]) > MOST:
        return None
    made = Ending(layer, _pooling(first, modules), (shape[1], shape[2], shape[3]))
    if made.pooled.shape[1] * shape[1] != layer.in_features:
        return None
    net.add_module("ending", made)
    with net.graph.inserting_after(last):
        new = net.graph.call_module("ending", (source,))
    last.replace_all_uses_with(new)
    for node in taken:
        net.graph.erase_node(node)
    return made


def _before(last: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """What stands before the linear layer: flattening, if any, and pooling; nothing if it is something else."""
    node = last.args[0]
    found = []
    if isinstance(node, fx.Node) and _flattens(node, modules):
        found, node = [node], node.args[0]
    if not isinstance(node, fx.Node) or _pooling(node, modules) is None:
        return []
    return [*found, node] if found or _means(node) else []


def _flattens(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = module_of(node, modules)
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    called = node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten")
    return called and node.args[1:] == (1,) and not node.kwargs


def _means(node: fx.Node) -> bool:
    """A mean over height and width, that leaves no such dimensions."""
    called = node.target is torch.mean or (node.op == "call_method" and node.target == "mean")
    return called and len(node.args) == 2 and tuple(_axes(node.args[1])) in ((2, 3), (-2, -1)) and not node.kwargs


def _axes(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _pooling(node: Any, modules: dict[str, nn.Module]) -> Any:
    """What a node that pools by averaging does to planes, or None for another node."""
    if type(module := module_of(node, modules)) in _MODULES:
        return module
    if _means(node):
        return lambda x: x.mean((2, 3))
    if node.op == "call_function" and node.target in _FUNCTIONS and not any(
        isinstance(value, fx.Node) for value in [*node.args[1:], *node.kwargs.values()]
    ):  # fmt: skip
        return lambda x: node.target(x, *node.args[1:], **node.kwargs)
    return None

"""The shortcut of a ResNet that is free of parameters: every other pixel, with planes of zeros around the planes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .areas import Kernel
from .slopes import spread


class Thinned(nn.Module):
    """Planes `(B, C, H, W)` to `(B, before + C + after, ceil(H / stride), ceil(W / stride))`."""

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after
        self.kernel = Kernel(stride=(stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))

    def compute(self, x: Tensor, other: Tensor | None = None, padded: bool = False) -> Tensor:
        """The same without autograd, channels last. There is nothing to add, and no padding of the pixels."""
        seen = x[:, :, :: self.stride, :: self.stride]
        batch, planes, height, width = seen.shape
        found = x.new_zeros(batch, height, width, self.before + planes + self.after).permute(0, 3, 1, 2)
        found[:, self.before : self.before + planes] = seen
        return found

    def slope(self, g: Tensor, shape: torch.Size, there: Tensor | None = None) -> Tensor:
        """The gradient by planes of this shape, channels last; added to `there`, in its place, if that is given."""
        seen = g[:, self.before : self.before + shape[1]]
        if there is None:
            return spread(seen, shape, self.stride, self.stride)
        there[:, :, :: self.stride, :: self.stride].add_(seen)
        return there


def thin(net: fx.GraphModule) -> None:
    """Put a `Thinned` in the place of each pooling of single pixels with padding by planes behind it."""
    for number, node in enumerate(list(net.graph.nodes)):
        found = _read(node)
        if found is None:
            continue
        name = f"thinned_{number}"
        net.add_module(name, found)
        pool = node.args[0]
        with net.graph.inserting_after(node):
            new = net.graph.call_module(name, (pool.args[0],))
        node.replace_all_uses_with(new)
        net.graph.erase_node(node)
        net.graph.erase_node(pool)


def _read(node: fx.Node) -> Thinned | None:
    if node.target is not F.pad or len(node.args) != 2 or node.kwargs.get("value"):
        return None
    pool, around = node.args
    if not isinstance(pool, fx.Node) or pool.target is not F.avg_pool2d or len(pool.users) != 1 or pool.kwargs:
        return None
    sizes: tuple[Any, ...] = tuple(around) if isinstance(around, (list, tuple)) else ()
    plain = len(sizes) == 6 and all(type(size) is int and size >= 0 for size in sizes) and not any(sizes[:4])
    if not plain or node.kwargs.get("mode", "constant") != "constant" or len(pool.args) != 3 or pool.args[1] != 1:
        return None
    stride = pool.args[2]
    return Thinned(stride, sizes[4], sizes[5]) if type(stride) is int else None

"""Convolutions that do what follows them in one pass: bias, a residual's addition, ReLU.

For a frozen net on a CPU. What a convolution puts out is then written once instead of once for each operation, and the
backward takes the gradient by the input alone, in the way that is fastest (`slopes`). Same function up to rounding.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from ..nets.cpu_bfloat16 import relu_backward
from ..nets.memory_format import in_channels_last
from .areas import Kernel
from .ending import Ending, ending
from .fold import plain
from .packing import Packed
from .reading import module_of, padding_of, shapes_of
from .slopes import Slope, slope_of
from .thinned import thin

_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class _Activation:
    """ReLU, with a highest value or without."""

    name: str = "none"
    limits: tuple[float, ...] = ()

    def backward(self, g: Tensor, y: Tensor, here: bool = False) -> Tensor:
        """The gradient before the activation, of which `y` came out. `here`: in the place of `g`."""
        if self.name == "none":
            return g
        if self.name == "relu" and g.dtype == torch.bfloat16:
            return relu_backward(g, y, g if here else None)
        place = {"grad_input": g} if here else {}
        if self.name == "relu":
            how = torch.ops.aten.threshold_backward
            return (how.grad_input if here else how.default)(g, y, 0, **place)
        how = torch.ops.aten.hardtanh_backward
        return (how.grad_input if here else how.default)(g, y, *self.limits, **place)


_NONE, RELU, RELU6 = _Activation(), _Activation("relu"), _Activation("hardtanh", (0.0, 6.0))


class Fused(nn.Module):
    """`layer` with the activation behind it, between them the sum with a second input if one is given.

    It reads the layer's weights when it is first asked, and again after `take`, which has to follow whenever they move.
    `gives`: the dtype of what it puts out, where that is not its own; it may be set.
    """

    gives: torch.dtype | None = None

    def __init__(self, layer: nn.Conv2d, activation: _Activation = _NONE) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation
        self.kernel = Kernel.of(layer)
        self.take()

    def take(self) -> None:
        """Forget what was packed: the layer's weights have moved, or nobody asks for a while and memory is wanted."""
        layer = self.layer
        self._weight = Packed(layer.weight.detach(), layer.stride, layer.dilation, layer.groups)
        self._bias = None if layer.bias is None else layer.bias.detach().clone()
        # Packed when it is first wanted: teachers are often asked for no gradient.
        self._slope: Slope | None = None

    def slope(self, g: Tensor, shape: torch.Size, there: Tensor | None = None) -> Tensor:
        """The gradient by inputs of this shape from the gradient `g` by the convolution's outputs, channels last.

        `there`: what others send back to the inputs, to be added; it may be overwritten.
        """
        weight = self.layer.weight.detach()
        if self._slope is None:
            self._slope = slope_of(self.layer, weight)
        return self._slope(g.to(weight.dtype), shape, there)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        found: Tensor = _Convolve.apply(x, other, self)
        return found

    def compute(self, x: Tensor, other: Tensor | None = None, padded: bool = False) -> Tensor:
        """Outputs `(B, O, h, w)` of `x (B, C, H, W)` and, added before the activation, `other (B, O, h, w)`.

        `padded`: `x` has its padding, or the inputs in its place, around it.
        """
        padding, then = (0, 0) if padded else padding_of(self.layer), self.activation
        found = self._weight.convolve(x, padding, self._bias, other, then.name, then.limits)
        return found if self.gives is None else found.to(self.gives)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, other: Tensor | None, fused: Fused) -> Tensor:
        y = fused.compute(in_channels_last(x), None if other is None else in_channels_last(other))
        context.fused, context.shape = fused, x.shape
        if fused.activation is not _NONE:
            context.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        fused: Fused = context.fused
        g = in_channels_last(g)
        if fused.activation is not _NONE:
            g = fused.activation.backward(g, *context.saved_tensors)
        before, beside, _ = context.needs_input_grad
        return fused.slope(g, context.shape) if before else None, g if beside else None, None


def fuse(arch: nn.Module, example: Tensor) -> tuple[fx.GraphModule, list[Fused | Ending]]:
    """`arch` with its convolutions and its end fused, and these; the modules that are left are the same ones.

    `arch`: in eval mode, frozen, on a CPU; `example (B, C, H, W)`: what it gets. Raises whatever torch.fx raises of a
    net that it cannot read, such as one whose way depends on values.
    """
    net = fx.symbolic_trace(arch)
    modules = dict(net.named_modules())
    shapes = shapes_of(net, example)
    made: list[Fused | Ending] = []
    for node in list(net.graph.nodes):
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(layer) is not nn.Conv2d or not _fusible(layer):
            continue
        taken, other, activation = _followers(node, modules, shapes)
        fused = Fused(layer, activation)
        made.append(fused)
        name = f"fused_{len(made)}"
        net.add_module(name, fused)
        with net.graph.inserting_after(taken[-1]):
            new = net.graph.call_module(name, (node.args[0],) if other is None else (node.args[0], other))
        taken[-1].replace_all_uses_with(new)
        shapes[new] = shapes[taken[-1]]
        for old in reversed(taken):
            net.graph.erase_node(old)
    thin(net)
    if (end := ending(net, shapes)) is not None:
        made.append(end)
    net.recompile()
    return net, made


def _fusible(layer: nn.Conv2d) -> bool:
    return plain(layer) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _followers(
    node: fx.Node, modules: dict[str, nn.Module], shapes: dict[fx.Node, torch.Size | None]
) -> tuple[list[fx.Node], fx.Node | None, _Activation]:
    """A convolution with the nodes behind it that can be taken in, what is added to its outputs, and the ReLU.

    Taken in is what nobody else looks at: each node is the only user of the one before.
    """
    taken, other, after = [node], None, _only_user(node)
    while after is not None and isinstance(module_of(after, modules), nn.Identity):
        taken, after = [*taken, after], _only_user(after)
    if after is not None and after.op == "call_function" and after.target in _ADDITIONS and not after.kwargs:
        beside = [value for value in after.args if value is not taken[-1]]
        if len(beside) == 1 and isinstance(beside[0], fx.Node) and shapes[beside[0]] == shapes[node]:
            other, taken, after = beside[0], [*taken, after], _only_user(after)
    activation = _activation(after, modules)
    if after is not None and (activation is RELU or (activation is RELU6 and other is None)):
        return [*taken, after], other, activation
    return taken, other, _NONE


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None, modules: dict[str, nn.Module]) -> _Activation:
    if node is None:
        return _NONE
    module = module_of(node, modules)
    function = node.target if node.op == "call_function" else None
    if type(module) is nn.ReLU or function in (F.relu, torch.relu):
        return RELU
    if type(module) is nn.ReLU6 or function is F.relu6:
        return RELU6
    return _NONE

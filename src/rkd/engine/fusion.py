"""Which nodes of a traced net are fused: a convolution with what follows it, a padded shortcut, the pooled head.

Nodes are taken in only where nothing else reads what lies between them. Same function up to rounding.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .copy import is_plain
from .onednn import GELU, HARDSWISH, NONE, RELU, RELU6, SILU, Activation, FusedConv, PadShortcut, PooledHead

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_ACTIVATIONS: dict[Any, Activation] = {
    nn.ReLU: RELU, F.relu: RELU, torch.relu: RELU, nn.ReLU6: RELU6, F.relu6: RELU6, nn.SiLU: SILU, F.silu: SILU,
    nn.Hardswish: HARDSWISH, F.hardswish: HARDSWISH,
}  # fmt: skip
_POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_POOL_FUNCTIONS = (F.adaptive_avg_pool2d, F.avg_pool2d)

Shapes = dict[fx.Node, torch.Size | None]
"""The shape of each node's output, None where it is no tensor."""


class FusedGraph:
    """`arch` with its layers fused, as `net`; `layers` are the fused ones. What is left are the modules of `arch`.

    `arch`: in eval mode, frozen, on a CPU; `example (B, C, H, W)`: what it takes. Raises whatever torch.fx raises of a
    net whose own forward it cannot read, because it branches on values.
    """

    def __init__(self, arch: nn.Module, example: Tensor) -> None:
        tracer = _Tracer()
        self.net = fx.GraphModule(arch, tracer.trace(arch))
        self.modules = dict(self.net.named_modules())
        self.shapes = shapes_of(self.net, example)
        self.widest = max(math.prod(shape[1:]) for shape in self.shapes.values() if shape is not None)
        """Numbers of the largest activation of an image."""
        self.layers: list[FusedConv] = []
        for number, node in enumerate(list(self.net.graph.nodes)):
            layer = self._module(node)
            if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                self._fuse_conv(node, layer, f"fused_{number}")
        for number, node in enumerate(list(self.net.graph.nodes)):
            if (shortcut := _pad_shortcut(node)) is not None:
                self._put(f"shortcut_{number}", shortcut, [node.args[0], node], (node.args[0].args[0],))
        self._fuse_head()
        self.net.recompile()

    @property
    def gains(self) -> bool:
        """Whether any convolution takes in an activation also where a gradient is wanted."""
        return any(one.activation.by_output and one.activation is not NONE for one in self.layers)

    def _module(self, node: Any) -> nn.Module | None:
        return module_of(node, self.modules)

    def _put(self, name: str, module: nn.Module, taken: list[fx.Node], inputs: tuple[fx.Node, ...]) -> None:
        """Put `module` in the place of the nodes `taken`, the last of which others read."""
        self.net.add_module(name, module)
        with self.net.graph.inserting_after(taken[-1]):
            new = self.net.graph.call_module(name, inputs)
        taken[-1].replace_all_uses_with(new)
        self.shapes[new] = self.shapes.get(taken[-1])
        for old in reversed(taken):
            self.net.graph.erase_node(old)

    def _fuse_conv(self, node: fx.Node, layer: nn.Conv2d, name: str) -> None:
        taken, other, after = [node], None, _only_user(node)
        while after is not None and isinstance(self._module(after), nn.Identity):
            taken, after = [*taken, after], _only_user(after)
        if after is not None and after.op == "call_function" and after.target in _ADDITIONS and not after.kwargs:
            beside = [value for value in after.args if value is not taken[-1]]
            same = len(beside) == 1 and isinstance(beside[0], fx.Node) and self.shapes[beside[0]] == self.shapes[node]
            if same:
                other, taken, after = beside[0], [*taken, after], _only_user(after)
        activation = self._activation(after)
        if after is not None and (activation.summed if other is not None else activation is not NONE):
            taken = [*taken, after]
        else:
            activation = NONE
        fused = FusedConv(layer, activation)
        self.layers.append(fused)
        self._put(name, fused, taken, (node.args[0],) if other is None else (node.args[0], other))  # type: ignore[arg-type]

    def _activation(self, node: fx.Node | None) -> Activation:
        if node is None:
            return NONE
        module = self._module(node)
        if type(module) is nn.GELU or node.target is F.gelu:
            kind = module.approximate if isinstance(module, nn.GELU) else node.kwargs.get("approximate", "none")
            return GELU[str(kind)]
        return _ACTIVATIONS.get(type(module) if module is not None else node.target, NONE)

    def _fuse_head(self) -> None:
        """Pooling, flattening and a linear layer at the net's end."""
        last = next(node for node in self.net.graph.nodes if node.op == "output").args[0]
        layer = self._module(last)
        if type(layer) is not nn.Linear or len(last.users) != 1:
            return
        taken, node = [last], last.args[0]
        while isinstance(node, fx.Node) and (self._flattens(node) or isinstance(self._module(node), nn.Identity)):
            taken, node = [node, *taken], node.args[0]
        pool = self._pool(node)
        if pool is None or (len(taken) == 1 and not _means(node)):
            return
        taken = [node, *taken]
        shape = self.shapes.get(node.args[0])
        if shape is None or len(shape) != 4 or any(len(one.users) != 1 for one in taken):
            return
        head = PooledHead(layer, pool, (shape[1], shape[2], shape[3]))
        if head.pooled.shape[1] * shape[1] == layer.in_features:
            self._put("head", head, taken, (node.args[0],))

    def _flattens(self, node: fx.Node) -> bool:
        module = self._module(node)
        if type(module) is nn.Flatten:
            return (module.start_dim, module.end_dim) == (1, -1)
        called = node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten")
        return called and node.args[1:] == (1,) and not node.kwargs

    def _pool(self, node: Any) -> Any:
        """What a node that pools by averaging does to planes, or None for another node."""
        if type(module := self._module(node)) in _POOLS:
            return module
        if not isinstance(node, fx.Node):
            return None
        if _means(node):
            return lambda x: x.mean((2, 3))
        if node.op == "call_function" and node.target in _POOL_FUNCTIONS and len(node.all_input_nodes) == 1:
            return lambda x: node.target(x, *node.args[1:], **node.kwargs)
        return None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _means(node: fx.Node) -> bool:
    """A mean over height and width, that leaves no such dimensions."""
    called = node.target is torch.mean or (node.op == "call_method" and node.target == "mean")
    if not called or len(node.args) != 2 or node.kwargs:
        return False
    axes = node.args[1]
    return isinstance(axes, (list, tuple)) and tuple(axes) in ((2, 3), (-2, -1))


def _pad_shortcut(node: fx.Node) -> PadShortcut | None:
    """Pooling of single pixels with padding by planes behind it."""
    if node.target is not F.pad or len(node.args) != 2 or node.kwargs.get("value"):
        return None
    pool, around = node.args
    if not isinstance(pool, fx.Node) or pool.target is not F.avg_pool2d or len(pool.users) != 1 or pool.kwargs:
        return None
    sizes: tuple[Any, ...] = tuple(around) if isinstance(around, (list, tuple)) else ()
    by_planes = len(sizes) == 6 and all(type(size) is int and size >= 0 for size in sizes) and not any(sizes[:4])
    if not by_planes or node.kwargs.get("mode", "constant") != "constant" or len(pool.args) != 3 or pool.args[1] != 1:
        return None
    stride = pool.args[2]
    return PadShortcut(stride, sizes[4], sizes[5]) if type(stride) is int else None


class _Tracer(fx.Tracer):
    """Leaves modules as they are that it cannot read, or that have hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not is_plain(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known, depth = set(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever a forward raises that gets no tensors
            for node in reversed([node for node in self.graph.nodes if node not in known]):
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.shapes[n] = value.shape if isinstance(value, Tensor) else None
        return value

    shapes: Shapes


def shapes_of(net: fx.GraphModule, x: Tensor) -> Shapes:
    """The shape of each node's output for `x`."""
    interpreter = _Shapes(net)
    interpreter.shapes = {}
    with torch.no_grad():
        interpreter.run(x)
    return interpreter.shapes


def module_of(node: Any, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if nothing but its own forward runs then."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    found = modules.get(str(node.target))
    return found if found is not None and is_plain(found) else None

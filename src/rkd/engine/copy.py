"""A frozen copy of a net in eval mode, with batch norms folded, that is never behind its net.

In eval mode a batch norm multiplies each plane by a number and adds another. Behind a convolution or a linear layer
both go into that layer's weight and bias (`torch.nn.utils.fusion`): the same function up to rounding, and each plane is
read and written once less in the forward and in the backward.

An attack asks a net whose weights do not move until it is over. So the copy is made once and brought up to date when an
attack begins, whoever has moved the weights meanwhile: the optimiser, a loaded file, an average.
"""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..core.traits import name_of
from ..core.types import View
from ..nets.batchnorm import as_seen, norm_of
from ..nets.modes import running
from ..nets.net import Net

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class FrozenCopy:
    """A copy `net` of `original` as `view` sees it, in eval mode and without gradients for its weights.

    `example (B, ...)`: what the net takes. `folded`: the names of layers with the batch norm behind each. Raises
    whatever a module raises that cannot be copied.
    """

    def __init__(self, original: nn.Module, example: Tensor, view: View | None = None) -> None:
        self.original, self.view = original, view
        self.net = as_seen(original, view).eval().requires_grad_(False)
        if isinstance(self.net, Net):
            self.net.to(memory_format=torch.contiguous_format)
            self.net.channels_last = False
        self.folded = foldable(self.net, example)
        modules = dict(self.net.named_modules())
        names = {name for pair in self.folded for name in pair}
        # The copy's modules, not their names: they may be wrapped later.
        self._merged = [(modules[layer], layer, norm) for layer, norm in self.folded]
        self._copied = [
            (module, path, name)
            for path, module in modules.items() if path not in names
            for kind in (module._parameters, module._buffers) for name, value in kind.items() if value is not None
        ]  # fmt: skip
        for layer, norm in self.folded:
            fold(self.net, layer, norm)
        self._modules = self._signature()

    def current(self) -> bool:
        """Whether the original still consists of the same modules."""
        return self._signature() == self._modules

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the original's weights and statistics."""
        live = dict(self.original.named_modules())
        for layer, layer_name, norm_name in self._merged:
            weight, bias = merged(live[layer_name], norm_of(live[norm_name], self.view))
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        for module, path, name in self._copied:
            getattr(module, name).copy_(getattr(norm_of(live[path], self.view), name))

    def _signature(self) -> list[Any]:
        return [(id(module), type(module)) for module in self.original.modules()]


def foldable(net: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """The names of layers and of the batch norms that can be folded into them.

    Pairs are seen while the net runs on `example (B, ...)`: a batch norm whose input is the output of a layer that ran
    once, and that nothing else reads. On other images a net that branches on values may do otherwise: the caller has
    to compare.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}
    runs: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def layer_ran(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            runs[name] += 1
            outputs[id(output)] = (name, output)  # kept alive, so that the id stays its own

        return hook

    def norm_ran(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            before = outputs.get(id(inputs[0]))
            if before and before[1] is inputs[0]:
                pairs.append((before[0], name))

        return hook

    handles = []
    for name, module in net.named_modules():
        if type(module) in _LAYERS and is_plain(module):
            handles.append(module.register_forward_hook(layer_ran(name)))
        elif isinstance(module, _BatchNorm) and is_plain(module) and module.track_running_stats:
            handles.append(module.register_forward_hook(norm_ran(name)))
    uses = _Uses()
    try:
        with running(net, "eval"), torch.no_grad(), uses:
            net(example)
    finally:
        for handle in handles:
            handle.remove()
    by_layer = {name: output for name, output in outputs.values()}
    owners = Counter(id(p) for m in net.modules() for p in m._parameters.values() if p is not None)
    modules = dict(net.named_modules())

    def fits(layer: str, norm: str) -> bool:
        once = runs[layer] == runs[norm] == uses.of(by_layer[layer]) == 1
        own = all(owners[id(p)] == 1 for p in modules[layer]._parameters.values() if p is not None)
        return once and own and _rest(modules[norm]) is not None

    return [(layer, norm) for layer, norm in pairs if fits(layer, norm)]


def fold(net: nn.Module, layer_name: str, norm_name: str) -> None:
    """Fold a batch norm into the layer before it, in place. What its module does besides stays in its place."""
    layer, norm = net.get_submodule(layer_name), net.get_submodule(norm_name)
    weight, bias = merged(layer, norm)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    rest = _rest(norm)
    assert rest is not None
    put(net, norm_name, rest)


def merged(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the norm behind it folded into them."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    # In float64: one rounding at the end instead of one after each operation.
    values: list[Any] = [layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias]
    w, b, mean, variance, gamma, beta = (None if value is None else value.detach().double() for value in values)
    weight, bias = fuse_conv_bn_weights(w, b, mean, variance, norm.eps, gamma, beta)  # type: ignore[arg-type]
    return weight.detach().to(values[0].dtype), bias.detach().to(values[0].dtype)


def _rest(norm: nn.Module) -> nn.Module | None:
    """What a module does after batch norm, such as timm's with activation; None where that cannot be read."""
    if type(norm) in _NORMS:
        return nn.Identity()
    try:
        graph = fx.symbolic_trace(norm).graph
    except Exception:  # whatever a module's own forward raises when it is traced
        return None
    for node in graph.nodes:
        if node.target is torch._assert:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    (source, *others) = (node for node in graph.nodes if node.op == "placeholder")
    node = next(iter(source.users), None)
    if others or node is None or len(source.users) > 1 or node.target is not F.batch_norm or node.args[0] is not source:
        return None
    node.replace_all_uses_with(source)
    graph.eliminate_dead_code()
    return fx.GraphModule(norm, graph)


class _Uses(TorchFunctionMode):
    """Counts how often each tensor goes into a function of torch; to ask for its shape and its like is none."""

    def __init__(self) -> None:
        super().__init__()
        self._count: Counter[int] = Counter()
        self._alive: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if name_of(func) not in _HARMLESS and func not in _ATTRIBUTES:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._count[id(value)] += 1
                    self._alive.append(value)  # so that no other tensor gets its id
        return func(*args, **kwargs)

    def of(self, tensor: Tensor) -> int:
        return self._count[id(tensor)]


_HARMLESS = {"dim", "size", "numel", "__len__", "is_contiguous", "stride", "is_floating_point", "is_complex",
             "get_device"}  # fmt: skip
_ATTRIBUTES = {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "is_sparse", "is_quantized")
}


def is_plain(module: nn.Module) -> bool:
    """Whether nothing but the module's own forward runs when it is called."""
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or is_parametrized(module)
    )  # fmt: skip


def put(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` into the place of the submodule `name`."""
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)

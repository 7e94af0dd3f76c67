"""Batch norm in eval mode, folded into the layer before it.

In eval mode a batch norm is one number to multiply each plane with and one to add. Behind a convolution or a linear
layer both go into that layer's own weights and bias:

    w' = w * gamma / sqrt(var + eps)        b' = (b - mean) * gamma / sqrt(var + eps) + beta

which is the same function up to rounding, and saves reading and writing every plane once in the forward and once in
the backward.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..nets.modes import running

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def folded(net: nn.Module, example: Tensor) -> nn.Module | None:
    """A frozen copy of `net` in eval mode with its batch norms folded, or None where there is nothing to fold.

    `example (B, ...)`: what the net takes. See `foldable` for what is folded.
    """
    pairs = foldable(net, example)
    if not pairs:
        return None
    try:
        twin = copy.deepcopy(net)
    except Exception:  # whatever a stranger's module does when it is copied: it runs as it is
        return None
    fold(twin.eval().requires_grad_(False), pairs)
    return twin


def fold(net: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Fold the norms of `pairs`, of which `foldable` gives the names, in place."""
    for layer_name, norm_name in pairs:
        layer = net.get_submodule(layer_name)
        weight, bias = merged(layer, net.get_submodule(norm_name))
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = nn.Parameter(bias, requires_grad=False)
        put(net, norm_name, nn.Identity())


def foldable(net: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of the layers with a batch norm behind them, and of these norms.

    Pairs are found by watching the net run on `example (B, ...)`: a batch norm whose input is the very output of a
    layer that ran once, and which nothing else looks at. A net whose way depends on the images could do otherwise on
    others: the caller has to compare copy and net on what it has (`rkd.engine.choose` does).
    """
    made: dict[int, tuple[str, Tensor]] = {}
    runs: Counter[str] = Counter()
    found: list[tuple[str, str]] = []

    def layer_ran(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            runs[name] += 1
            made[id(output)] = (name, output)  # kept alive, so that the id stays its own

        return hook

    def norm_ran(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            before = made.get(id(inputs[0]))
            if before and before[1] is inputs[0]:
                found.append((before[0], name))

        return hook

    handles = []
    for name, module in net.named_modules():
        if type(module) in _LAYERS and plain(module):
            handles.append(module.register_forward_hook(layer_ran(name)))
        elif type(module) in _NORMS and plain(module) and module.track_running_stats:
            handles.append(module.register_forward_hook(norm_ran(name)))
    uses = _Uses()
    try:
        with running(net, "eval"), torch.no_grad(), uses:
            net(example)
    finally:
        for handle in handles:
            handle.remove()
    outputs = {name: output for name, output in made.values()}
    shared = {id(p): 0 for m in net.modules() for p in m._parameters.values() if p is not None}
    for module in dict.fromkeys(net.modules()):
        for parameter in module._parameters.values():
            if parameter is not None:
                shared[id(parameter)] += 1
    modules = dict(net.named_modules())

    def own(name: str) -> bool:
        return all(shared[id(p)] == 1 for p in modules[name]._parameters.values() if p is not None)

    return [(a, b) for a, b in found if runs[a] == runs[b] == uses.of(outputs[a]) == 1 and own(a)]


class _Uses(TorchFunctionMode):
    """Inside, counts how often each tensor goes into a function of torch; to ask for its shape and its like is none."""

    def __init__(self) -> None:
        super().__init__()
        self._count: Counter[int] = Counter()
        self._alive: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _HARMLESS and func not in _ATTRIBUTES:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._count[id(value)] += 1
                    self._alive.append(value)  # so that no other tensor gets its id
        return func(*args, **kwargs)

    def of(self, tensor: Tensor) -> int:
        return self._count[id(tensor)]


_HARMLESS = {
    "dim",
    "size",
    "numel",
    "__len__",
    "is_contiguous",
    "stride",
    "is_floating_point",
    "is_complex",
    "get_device",
}
_ATTRIBUTES = {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "is_sparse", "is_quantized")
}


def plain(module: nn.Module) -> bool:
    """Whether nothing but the module's own forward runs when it is called."""
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or hasattr(module, "parametrizations")
    )  # fmt: skip


def merged(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the norm behind it folded into them."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    # In float64: one rounding at the end instead of one after each operation.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if bias is not None:
        shift = shift + bias.detach().double() * scale
    wide = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight.double() * wide).to(weight.dtype), shift.to(weight.dtype)


def put(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` into the place of the submodule `name`."""
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)

"""Activation checkpointing of a training's forward on a CPU: of each block the backward keeps the input alone.

What the layers of such a block would keep is computed again when the backward comes to it, by
`torch.utils.checkpoint`: with the same batch statistics, random numbers, autocast and routed norms, so each bit of each
gradient is the same. Running statistics are updated once, in the forward.

A block is a child of an `nn.Sequential` with two or more layers of weights and without such a child of its own: a
residual block of a ResNet, an inverted residual of MobileNetV2, a transformer's block. It runs as it is where computing
it again might not give the same: with hooks, TorchScript, buffers that are no norm's or modules in eval mode inside.
So does the whole net inside another's `TorchFunctionMode` (synchronised batch norm) or in what functorch or a compiler
traces.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from .batchnorm import routing_of
from .cpu_bfloat16 import OnCpu
from .modes import running

Norms: TypeAlias = list[tuple[_NormBase, bool, dict[str, Tensor | None]]]


@contextmanager
def checkpointed(net: nn.Module, x: Tensor) -> Iterator[None]:
    """Inside, a forward of `net` on `x` keeps less for its backward, if it is part of a training on a CPU."""
    blocks = [block for block in blocks_of(net) if _exact(block)] if _trains(net, x) else []
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The innermost children of `nn.Sequential` containers that have two or more layers of weights, in order."""
    children = chain.from_iterable(module for module in net.modules() if isinstance(module, nn.Sequential))
    blocks = {child for child in children if _layers(child) >= 2}
    return [m for m in net.modules() if m in blocks and blocks.isdisjoint(set(m.modules()) - {m})]


def _layers(module: nn.Module) -> int:
    """How many layers of weights it has; a norm's weight, a vector, makes none."""
    return sum(parameter.ndim >= 2 for parameter in module.parameters())


def _trains(net: nn.Module, x: Tensor) -> bool:
    """Whether a forward of `net` on `x` belongs to a training that nobody traces."""
    if x.device.type != "cpu" or not net.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    # A search freezes the weights, and goes back at once: it never takes the most memory.
    trained = any(parameter.requires_grad for parameter in net.parameters())
    return trained and all(isinstance(mode, OnCpu) for mode in _get_current_function_mode_stack())


def _exact(block: nn.Module) -> bool:
    """Whether a second forward of the block gives the same, and leaves no trace."""
    for module in block.modules():
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        buffers = module._buffers and not isinstance(module, _NormBase)
        if hooks or buffers or not module.training or isinstance(module, torch.jit.ScriptModule):
            return False
    return "forward" not in vars(block)


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if kwargs or len(args) != 1 or type(args[0]) is not Tensor:
        return forward(*args, **kwargs)
    replay = _Replay(block, args[0])
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), replay))


class _Replay:
    """Inside, which may be entered once for each backward, the block's forward on `x` does what it does now, and
    records statistics in copies."""

    def __init__(self, block: nn.Module, x: Tensor) -> None:
        self._block, self._x = block, x
        self._versions, self._norms, self._routing = _versions(block, x), _norms(block), routing_of(block)

    def __enter__(self) -> None:
        if _versions(self._block, self._x) != self._versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: the "
                f"input or a weight of {type(self._block).__name__}, which is computed again for the backward"
            )
        with ExitStack() as stack:
            stack.callback(_set_norms, _norms(self._block))
            copies = {id(b): b.clone() for _, _, buffers in self._norms for b in buffers.values() if b is not None}
            _set_norms([(n, t, {k: copies.get(id(b)) for k, b in buffers.items()}) for n, t, buffers in self._norms])
            stack.enter_context(running(self._block, "train"))
            stack.enter_context(self._routing())
            if torch.is_autocast_enabled("cpu"):
                stack.enter_context(OnCpu())
            self._open = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        self._open.close()


def _norms(block: nn.Module) -> Norms:
    """The norms in a block, whether they record statistics now, and where."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    return [(norm, norm.track_running_stats, dict(norm._buffers)) for norm in norms]


def _set_norms(norms: Norms) -> None:
    for norm, tracks, buffers in norms:
        norm.track_running_stats = tracks
        norm._buffers.update(buffers)


def _versions(block: nn.Module, x: Tensor) -> list[int]:
    """How often torch has seen each tensor written to that the block's forward depends on."""
    return [tensor._version for tensor in (x, *block.parameters())]

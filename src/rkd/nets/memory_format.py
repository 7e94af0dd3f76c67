"""Channels last: the layout of images and weights in memory in which convolutions run fastest.

The same numbers in another order. Sums are taken in another order with it, so results differ in the last digits.
"""

import torch
from torch import Tensor

from ..core.types import Shape
from .net import Net


def arrange(net: Net, shape: Shape, device: torch.device) -> None:
    """Let `net`, on its `device`, run channels last where that is known to pay: on CPUs, and on GPUs in reduced
    precision. A net that cannot (some reshape images by `view`) stays as it is.

    On a GPU in float32 it depends on the net and the card which layout is faster, and the usual one is kept.
    """
    if device.type == "cuda" and net.autocast is None:
        return
    if not any(weight.ndim == 4 for weight in net.parameters()):
        return
    net.to(memory_format=torch.channels_last)
    net.channels_last = True
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            net(torch.zeros(2, *shape, device=device))
    except RuntimeError:
        restore(net)
    finally:
        for module, mode in modes:
            module.training = mode


def channels_last(x: Tensor) -> Tensor:
    """`x (B, C, H, W)` with channels last in memory, also of one channel, where torch's own format is ambiguous."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def in_channels_last(x: Tensor) -> Tensor:
    """The same, copied only if it is not so already."""
    return channels_last(x) if x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)


def restore(net: Net) -> None:
    """Back to float32 and the usual layout: how a net is evaluated and kept."""
    net.autocast = None
    if net.channels_last:
        net.to(memory_format=torch.contiguous_format)
        net.channels_last = False


def follow(optimizer: torch.optim.Optimizer) -> None:
    """Give gradients and an optimiser's state the layout of their weights.

    Fused kernels go through memory and take it for granted. It holds for what autograd and the optimiser make, but not
    for a state out of a file, nor for a gradient that an extension sets.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = _like(weight.grad, weight)
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = _like(value, weight)


def _like(value: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)

"""Batch norm over the batches of all processes.

Inside `synchronised(ranks)` every batch norm in train mode takes mean and variance of the whole batch, wherever it is:
in a student, in a routed norm, in a search. It is caught at the one function that all of them call, so no module has
to be converted, a net from timm keeps its fused layers, and what is saved is the net as it was. Unlike
`torch.nn.SyncBatchNorm` it runs on CPUs.

All processes must run the same forwards in the same order: a search in train mode must not stop early.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .ranks import Ranks


@contextmanager
def synchronised(ranks: Ranks) -> Iterator[None]:
    """Inside, batch norms in train mode see the samples of all processes."""
    if ranks.size == 1:
        yield
        return
    with _Synchronised():
        yield


class _Synchronised(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes. Its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    channels = x.shape[1]
    around = [d for d in range(x.ndim) if d != 1]
    shape = [1, channels] + [1] * (x.ndim - 2)
    values = x.float()
    count = values.new_tensor([values.numel() / channels])
    sums = _Sum.apply(torch.cat([values.sum(around), count]))
    samples = sums[-1].detach()
    mean = sums[:-1] / samples
    centred = values - mean.view(shape)
    # Two rounds, as mean and centred squares: the difference of large squares would lose digits.
    variance = _Sum.apply(centred.square().sum(around)) / samples
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance.detach() * (samples / (samples - 1).clamp_min(1))
            running_mean.lerp_(mean.detach().to(running_mean), momentum)
            running_var.lerp_(unbiased.to(running_var), momentum)
    normal = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        normal = normal * weight.float().view(shape)
    if bias is not None:
        normal = normal + bias.float().view(shape)
    return normal.to(x.dtype)

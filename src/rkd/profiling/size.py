"""How large a net is, and how long it takes for one image: what a device must have room and time for."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.types import Shape
from ..nets.modes import frozen_parameters, running

WARM_UP, RUNS = 5, 30
"""Forwards before the clock runs, and those that it takes."""


def size_of(net: nn.Module, shape: Shape) -> dict[str, Any]:
    """`parameters`, `bytes` of all its weights and buffers, `macs` (see `macs_of`) and `latency`, all for one image of
    `shape`, on the CPU in eval mode. The net is left as it was."""
    if any(tensor.device.type != "cpu" for tensor in net.state_dict().values()):
        net = copy.deepcopy(net).cpu()
    tensors = net.state_dict().values()
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "macs": macs_of(net, shape),
        "latency": latency_of(net, shape),
    }


def macs_of(net: nn.Module, shape: Shape) -> int:
    """Multiply-accumulates of the convolutions, matrix products and attention for one image."""
    # A gradient is wanted, or torch would run attention as one operation whose insides are not seen.
    x = torch.zeros(1, *shape, requires_grad=True)
    with running(net, "eval"), frozen_parameters(net), torch.enable_grad(), _Macs() as counter:
        net(x)
    return counter.count


def latency_of(net: Callable[[Tensor], Tensor], shape: Shape) -> dict[str, Any]:
    """Milliseconds for one image on one thread: `median`, `quartiles` and the number of `runs` that they are of."""
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    taken = []
    with _eval(net), torch.no_grad(), _one_thread():
        for _ in range(WARM_UP):
            net(x)
        for _ in range(RUNS):
            started = time.perf_counter()
            net(x)
            taken.append(1000 * (time.perf_counter() - started))
    low, median, high = statistics.quantiles(taken, n=4)
    return {"median": round(median, 4), "quartiles": [round(low, 4), round(high, 4)], "runs": RUNS}


@contextmanager
def _eval(net: Callable[[Tensor], Tensor]) -> Iterator[None]:
    if isinstance(net, nn.Module):
        with running(net, "eval"):
            yield
    else:
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Macs(TorchDispatchMode):
    """Counts by formulas of its own: torch.utils.flop_counter brings Triton, 70 MiB in every run, and has none for
    attention on CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operator(*arguments, **(options or {}))
        aten, packet = torch.ops.aten, operator.overloadpacket
        if packet is aten.convolution:
            x, weight, transposed = arguments[0], arguments[1], arguments[6]
            self.count += (x if transposed else result).numel() * weight[0].numel()
        elif packet in (aten.mm, aten.bmm):
            self.count += arguments[0].numel() * arguments[1].shape[-1]
        elif packet in (aten.addmm, aten.baddbmm):
            self.count += arguments[1].numel() * arguments[2].shape[-1]
        elif packet in (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention):
            query, keys, values = arguments[:3]
            self.count += query.shape[:-1].numel() * keys.shape[-2] * (query.shape[-1] + values.shape[-1])
        return result

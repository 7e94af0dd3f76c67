"""How long a net takes by what it computes, not by the clock: the same number whatever else the machine does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..core.interfaces import Probe


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, about: multiply-adds, and bytes that operations put out."""

    products: float
    bytes: float


CPU = Rates(160e9, 9e9)
"""Two cores with AVX512: what an idle machine measures lies near (docs/results/engine.md, the last column). It is too
little for tiny nets, since calls take time too."""
ELSEWHERE = Rates(5e12, 500e9)
"""A GPU, in orders of magnitude."""
GRADIENT = 3.0
"""How many forwards the gradient by the images costs, with its own forward."""


def forward_effort(net: Probe, x: Tensor) -> float:
    """Seconds that a forward of one image of `x (B, C, H, W)` takes, by what it computes, on a usual machine of this
    kind; where several are at work, or a faster one is, less is true."""
    count = _Count()
    with torch.no_grad(), count:
        net(x)
    rates = CPU if x.device.type == "cpu" else ELSEWHERE
    return (count.products / rates.products + count.bytes / rates.bytes) / len(x)


class _Count(TorchDispatchMode):
    """Counts, while it is entered, the multiply-adds of products and convolutions, and the bytes of all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self.products += flops(*args, **(kwargs or {}), out_val=found) // 2
        if not any(given.alias_info is not None and not given.alias_info.is_write for given in func._schema.returns):
            self.bytes += sum(each.nbytes for each in tree_leaves(found) if isinstance(each, Tensor))
        return found

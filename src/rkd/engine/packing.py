"""Weights in the order in which oneDNN's convolution reads them.

Which order that is depends on the inputs' shape, and a weight in another one is sorted anew in each call: that takes as
long as the convolution or longer for a layer of single pixels on small planes (`benchmarks/engine.py` times both). So
weights are packed when inputs of a shape first come.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 8
"""Images from which on their number makes no difference to the order."""
MOST, SHAPES = 2**22, 256
"""Bytes of one weight, packed for one shape after another, to keep, and for how many; for two in any case."""


class Packed:
    """`weight (O, C/groups, k, l)` for convolutions with this `stride`, `dilation` and number of `groups`.

    `turned`: for the gradient by the inputs, the kernel turned round and inputs and outputs exchanged. The weight is
    read when inputs of a new shape come: whoever moves it has to make a new `Packed`.
    """

    def __init__(
        self, weight: Tensor, stride: tuple[int, ...] = (1, 1), dilation: tuple[int, ...] = (1, 1), groups: int = 1,
        turned: bool = False,
    ) -> None:  # fmt: skip
        self.stride, self.dilation, self.groups = list(stride), list(dilation), groups
        self._weight, self._turned = weight, turned
        self._made: dict[tuple[int, ...], Tensor] = {}
        self._most = min(SHAPES, max(2, MOST // max(weight.numel() * weight.element_size(), 1)))

    def convolve(
        self, x: Tensor, padding: tuple[int, ...] = (0, 0), bias: Tensor | None = None, other: Tensor | None = None,
        then: str = "none", limits: tuple[float, ...] = (),
    ) -> Tensor:  # fmt: skip
        """The convolution of `x (B, C, H, W)`, channels last; `other` added to it and the activation `then`, as oneDNN
        calls it and with its `limits`, in the same pass."""
        weight = self._for(x.shape, padding)
        how = (list(padding), self.stride, self.dilation, self.groups)
        found: Tensor
        if other is None:
            found = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how, then, list(limits), "")
        else:
            after = None if then == "none" else then
            found = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, weight, bias, *how, "add", 1.0, after, list(limits), ""
            )
        return found

    def _for(self, shape: torch.Size, padding: tuple[int, ...]) -> Tensor:
        key = (min(shape[0], ALIKE), *shape[2:], *padding)
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= self._most:
                del self._made[next(iter(self._made))]
            weight = turned(self._weight, self.groups) if self._turned else self._weight
            last = weight.contiguous(memory_format=torch.channels_last)
            found = self._made[key] = torch.ops.mkldnn._reorder_convolution_weight(
                last, list(padding), self.stride, self.dilation, self.groups, list(shape)
            )
        return found


def turned(weight: Tensor, groups: int = 1) -> Tensor:
    """The kernel turned round, with inputs and outputs exchanged; `groups` is 1, or as many as there are planes."""
    return (weight.transpose(0, 1) if groups == 1 else weight).flip(2, 3)

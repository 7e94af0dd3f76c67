"""Convolutions of single pixels as matrix products, with channels last: each pixel's planes are a row.

Same numbers up to rounding. oneDNN's own convolution of single pixels goes through one image at a time: on planes of
8 x 8 pixels, with more outputs than inputs, the product takes a third of its time (a sixth in bfloat16).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_product(layer: nn.Conv2d) -> bool:
    """Whether each output of a convolution is made of the planes of the one pixel in its place."""
    single = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
    return single and not isinstance(layer.padding, str) and tuple(layer.padding) == (0, 0)


def packed_product(weight: Tensor) -> Tensor:
    """`weight (O, C, 1, 1)` in the order in which oneDNN's product reads it."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1).contiguous())
    return found


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none", limits: tuple[float, ...] = ()
) -> Tensor:
    """`(B, O, H, W)` from `x (B, C, H, W)`, both channels last, with a weight as `packed_product` gives it.

    `then`, `limits`: the activation behind it, as oneDNN calls it.
    """
    rows = x.permute(0, 2, 3, 1)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, then, list(limits), "")
    return found.permute(0, 3, 1, 2)

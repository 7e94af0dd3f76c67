"""The gradient of a convolution by its input, in the way that is fastest on a CPU.

What torch does is a kernel of its own, which for few planes and for strides is slower than a convolution. But the
gradient is itself a convolution of what arrives from behind, with the kernel turned round: as it
is for stride 1; for a stride after zeros are put between the pixels; or for each place within the stride alone. Sums
are taken in another order, so that the last digits differ.

Every way here takes `g (B, O, h, w)`, the gradient by the outputs, and gives the gradient by the inputs
`(B, C, H, W)`, with channels last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .packing import Packed
from .reading import padding_of

Slope = Callable[[Tensor, torch.Size, Tensor | None], Tensor]
"""From the gradient by the outputs, the inputs' shape, and what others send back to the inputs, if it is known already,
to the gradient by the inputs. What others send may be overwritten."""

FEW = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
"""Input planes up to which computing all four kinds of pixels at once was faster than torch's gradient."""
NARROW = 64
"""Outputs up to which what the taps of a single input plane send back was faster added up by ourselves."""


def slope_of(layer: nn.Conv2d, weight: Tensor) -> Slope:
    """How to take the gradient of `layer`, of zero padding by numbers, by its input. `weight (O, C/groups, k, l)`."""
    kernel, stride = layer.kernel_size, layer.stride
    padding = padding_of(layer)
    near = all(pad < size for pad, size in zip(padding, kernel, strict=True)) and layer.dilation == (1, 1)
    single = layer.groups == layer.in_channels == layer.out_channels  # depthwise
    if near and stride == (1, 1) and layer.in_channels == 1 and layer.out_channels <= NARROW:
        return _taps(weight, padding)
    if near and stride == (1, 1) and (layer.groups == 1 or single):
        return _turned(layer, weight, padding)
    if kernel == (1, 1) and padding == (0, 0) and layer.groups == 1:
        return _spread_after(layer, weight)
    if near and kernel == (3, 3) and stride == (2, 2) and padding == (1, 1):
        if layer.groups == 1 and layer.in_channels <= FEW:
            return _phases(weight)
        # In bfloat16 torch's own takes many times as long as the convolution (see `rkd.nets.cpu_bfloat16`).
        if single and weight.dtype == torch.bfloat16:
            return _spread_before(layer, weight)
    return _torchs(layer, weight, padding)


def _and(found: Tensor, there: Tensor | None) -> Tensor:
    return found if there is None else there.add_(found)


def _round(padding: tuple[int, int], kernel: tuple[int, ...]) -> tuple[int, int]:
    return kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]


def _turned(layer: nn.Conv2d, weight: Tensor, padding: tuple[int, int]) -> Slope:
    around = _round(padding, layer.kernel_size)
    packed = Packed(weight, groups=layer.groups, turned=True)
    return lambda g, shape, there: packed.convolve(g, around, other=there)


def _taps(weight: Tensor, padding: tuple[int, int]) -> Slope:
    """Of one input plane: what each tap of the kernel sends back is a matrix product, and is added where it belongs."""
    height, width = weight.shape[2:]
    # In float32 also of reduced precision: so narrow a product was slower in bfloat16.
    taps = weight.flatten(1).t().float().contiguous()  # (k * l, O)

    def slope(g: Tensor, shape: torch.Size, there: Tensor | None) -> Tensor:
        rows, columns = g.shape[2:]
        sent = (taps @ g.float().permute(0, 2, 3, 1).flatten(0, 2).t()).view(-1, len(g), rows, columns)
        found = sent.new_zeros(len(g), rows + height - 1, columns + width - 1)
        for place, part in enumerate(sent.unbind()):
            top, left = divmod(place, width)
            # Not by `+=`, which would copy the sum onto itself.
            found[:, top : top + rows, left : left + columns].add_(part)
        found = found[:, padding[0] :, padding[1] :][:, : shape[2], : shape[3]].unsqueeze(1).to(g.dtype)
        return _and(found, there)

    return slope


def _spread_after(layer: nn.Conv2d, weight: Tensor) -> Slope:
    """Of a kernel of one pixel: most inputs behind a stride are never seen."""
    packed = Packed(weight, turned=True)
    down, right = layer.stride

    def slope(g: Tensor, shape: torch.Size, there: Tensor | None) -> Tensor:
        return _and(spread(packed.convolve(g), shape, down, right), there)

    return slope


def _spread_before(layer: nn.Conv2d, weight: Tensor) -> Slope:
    packed = Packed(weight, groups=layer.groups, turned=True)

    def slope(g: Tensor, shape: torch.Size, there: Tensor | None) -> Tensor:
        wide = torch.Size((len(g), g.shape[1], *shape[2:]))
        return packed.convolve(spread(g, wide, 2, 2), (1, 1), other=there)

    return slope


def spread(values: Tensor, shape: torch.Size, down: int, right: int) -> Tensor:
    """Zeros of `shape`, channels last, with `values` at each `down`-th row and `right`-th column."""
    found = values.new_zeros(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    found[:, :, ::down, ::right] = values
    return found


def _phases(weight: Tensor) -> Slope:
    """Of a 3x3 kernel with stride 2: inputs at even and at odd rows and columns, four kinds, as planes of their own.

    An even row is met by the kernel's middle row alone, an odd one by its last and, one output further, its first. So
    one 2x2 convolution computes all four kinds, which are then sorted in.
    """
    outputs, inputs = weight.shape[:2]
    kinds = weight.new_zeros(2, 2, inputs, outputs, 2, 2)
    met = {0: ((1, 0),), 1: ((2, 0), (0, 1))}  # by parity: kernel rows, and outputs further
    for odd_row, rows in met.items():
        for odd_column, columns in met.items():
            for row, below in rows:
                for column, beside in columns:
                    kinds[odd_row, odd_column, :, :, below, beside] = weight[:, :, row, column].t()
    weights = Packed(kinds.view(4 * inputs, outputs, 2, 2))

    def slope(g: Tensor, shape: torch.Size, there: Tensor | None) -> Tensor:
        found = weights.convolve(g, (1, 1))[:, :, 1:, 1:]
        rows, columns = found.shape[2:]
        found = found.permute(0, 2, 3, 1).reshape(len(g), rows, columns, 2, 2, inputs).transpose(2, 3)
        found = found.reshape(len(g), 2 * rows, 2 * columns, inputs)
        return _and(found[:, : shape[2], : shape[3]].permute(0, 3, 1, 2), there)

    return slope


def _torchs(layer: nn.Conv2d, weight: Tensor, padding: tuple[int, int]) -> Slope:
    last = weight.contiguous(memory_format=torch.channels_last)

    def slope(g: Tensor, shape: torch.Size, there: Tensor | None) -> Tensor:
        # Of the inputs only shape and layout are looked at.
        x = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, last, None, layer.stride, padding, layer.dilation, False, [0, 0], layer.groups, [True, False, False]
        )[0]
        return _and(found, there)

    return slope

"""Layers of a frozen net on CPUs, computed by oneDNN's fused convolutions, and their gradients by the input alone.

A convolution adds its bias and a residual and applies its activation in one pass, so that each output is written once.
Weights are kept in the order that oneDNN reads them in. All take and give planes `(B, C, H, W)` with channels last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..nets.cpu_bfloat16 import relu_backward
from ..nets.memory_format import in_channels_last

InputGradient = Callable[[Tensor, torch.Size, Tensor | None], Tensor]
"""From the gradient by a convolution's outputs `(B, O, h, w)`, the inputs' shape, and the gradient that other users of
the inputs send back, which is added and may be overwritten, to the gradient by the inputs."""


class PrepackedConv:
    """Convolutions with `weight (O, C/groups, k, l)`, packed once for each shape of inputs.

    oneDNN's order depends on that shape, and a weight in another order is sorted anew in each call, which takes as long
    as a 1x1 convolution of small planes. `flipped`: by the kernel turned round, inputs and outputs exchanged, as for
    gradients. The weight is read when inputs of a new shape come: whoever moves it makes a new one.
    """

    SAME_ORDER = 8
    """Images from which on their number makes no difference to the order."""
    MAX_BYTES, MAX_SHAPES = 2**22, 256
    """Of one weight, packed for one shape after another, to keep at most; for two shapes in any case."""

    def __init__(
        self, weight: Tensor, stride: tuple[int, ...] = (1, 1), dilation: tuple[int, ...] = (1, 1), groups: int = 1,
        flipped: bool = False,
    ) -> None:  # fmt: skip
        self.stride, self.dilation, self.groups = list(stride), list(dilation), groups
        self._weight, self._flipped = weight, flipped
        self.packed: dict[tuple[int, ...], Tensor] = {}
        size = max(weight.numel() * weight.element_size(), 1)
        self._most = min(self.MAX_SHAPES, max(2, self.MAX_BYTES // size))

    def __call__(
        self, x: Tensor, padding: tuple[int, ...] = (0, 0), bias: Tensor | None = None, other: Tensor | None = None,
        activation: str = "none", scalars: tuple[float, ...] = (), algorithm: str = "",
    ) -> Tensor:  # fmt: skip
        """The convolution of `x`; `other` is added and the activation, by oneDNN's name, applied in the same pass."""
        key = (min(x.shape[0], self.SAME_ORDER), *x.shape[2:], *padding)
        weight = self.packed.get(key)
        if weight is None:
            weight = self._pack(key, x.shape, padding)
        how = (list(padding), self.stride, self.dilation, self.groups)
        found: Tensor
        if other is None:
            found = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how, activation, list(scalars), algorithm)
        else:
            after = None if activation == "none" else activation
            found = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, weight, bias, *how, "add", 1.0, after, list(scalars), algorithm
            )
        return found

    def _pack(self, key: tuple[int, ...], shape: torch.Size, padding: tuple[int, ...]) -> Tensor:
        if len(self.packed) >= self._most:
            del self.packed[next(iter(self.packed))]
        weight = flip(self._weight, self.groups) if self._flipped else self._weight
        last = weight.contiguous(memory_format=torch.channels_last)
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            last, list(padding), self.stride, self.dilation, self.groups, list(shape)
        )
        self.packed[key] = packed
        return packed


def flip(weight: Tensor, groups: int = 1) -> Tensor:
    """The kernel turned round, with inputs and outputs exchanged; `groups` is 1, or as many as there are planes."""
    return (weight.transpose(0, 1) if groups == 1 else weight).flip(2, 3)


@dataclass(frozen=True)
class Activation:
    """An activation by oneDNN's name. `by_output`: its gradient follows from its outputs, so that the inputs, which a
    fused convolution never writes, are not missed; else it is fused only where no gradient is wanted."""

    name: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""
    by_output: bool = True
    summed: bool = False
    """Whether oneDNN can apply it to a sum."""

    def __call__(self, x: Tensor) -> Tensor:
        """The activation alone; of those that are not `by_output`."""
        if self.name == "gelu":
            return F.gelu(x, approximate=self.algorithm)
        return F.silu(x) if self.name == "swish" else F.hardswish(x)

    def backward(self, g: Tensor, value: Tensor, inplace: bool = False) -> Tensor:
        """The gradient by the inputs, from that by the outputs. `value`: the outputs, or if not `by_output` the inputs;
        `inplace`: `g` may be overwritten."""
        aten, found = torch.ops.aten, g
        if self.name == "relu" and g.dtype == torch.bfloat16:
            found = relu_backward(g, value, g if inplace else None)
        elif self.name == "relu":
            out = g if inplace else torch.empty_like(g)
            found = aten.threshold_backward.grad_input(g, value, 0, grad_input=out)
        elif self.name == "hardtanh":
            out = g if inplace else torch.empty_like(g)
            found = aten.hardtanh_backward.grad_input(g, value, *self.scalars, grad_input=out)
        elif self.name == "swish":
            found = aten.silu_backward(g, value)
        elif self.name == "hardswish":
            found = aten.hardswish_backward(g, value)
        elif self.name == "gelu":
            found = aten.gelu_backward(g, value, approximate=self.algorithm)
        return found


NONE, RELU, RELU6 = Activation(), Activation("relu", summed=True), Activation("hardtanh", (0.0, 6.0))
SILU, HARDSWISH = Activation("swish", by_output=False), Activation("hardswish", by_output=False)
GELU = {kind: Activation("gelu", (), kind, by_output=False) for kind in ("none", "tanh")}


class FusedConv(nn.Module):
    """`layer` with the activation behind it, between them the sum with a second input if one is given.

    It reads the layer's weight when it is first asked, and again after `reset`, which follows whenever weights move.
    `out_dtype`: what it puts out, where that is not its own dtype; it may be set.
    """

    out_dtype: torch.dtype | None = None

    def __init__(self, layer: nn.Conv2d, activation: Activation = NONE) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation
        self.reset()

    def reset(self) -> None:
        """Forget what was packed: the layer's weight has moved, or the memory is wanted."""
        layer = self.layer
        self.conv = PrepackedConv(layer.weight.detach(), layer.stride, layer.dilation, layer.groups)
        self._bias = None if layer.bias is None else layer.bias.detach().clone()
        self._input_gradient: InputGradient | None = None  # teachers are often asked for none

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or (other is not None and other.requires_grad)):
            found: Tensor = _FusedConv.apply(x, other, self)
            return found
        return self.compute(in_channels_last(x), None if other is None else in_channels_last(other))

    def compute(self, x: Tensor, other: Tensor | None = None, padded: bool = False, activate: bool = True) -> Tensor:
        """Outputs `(B, O, h, w)` of `x (B, C, H, W)`, `other (B, O, h, w)` added, without autograd.

        `padded`: `x` has its padding, or the inputs in its place, around it.
        """
        then = self.activation if activate else NONE
        padding = (0, 0) if padded else padding_of(self.layer)
        found = self.conv(x, padding, self._bias, other, then.name, then.scalars, then.algorithm)
        return found if self.out_dtype is None else found.to(self.out_dtype)

    def input_gradient(self, g: Tensor, shape: torch.Size, accumulate_into: Tensor | None = None) -> Tensor:
        """The gradient by inputs of this shape from that by the convolution's outputs."""
        weight = self.layer.weight.detach()
        if self._input_gradient is None:
            self._input_gradient = input_gradient(self.layer, weight)
        return self._input_gradient(g.to(weight.dtype), shape, accumulate_into)


class _FusedConv(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, other: Tensor | None, fused: FusedConv) -> Tensor:
        context.fused, context.shape = fused, x.shape
        by_output = fused.activation.by_output
        other = None if other is None else in_channels_last(other)
        y = fused.compute(in_channels_last(x), other, activate=by_output)
        if fused.activation is not NONE:
            context.save_for_backward(y)
        return y if by_output else fused.activation(y)

    @staticmethod
    @once_differentiable
    def backward(context: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        fused: FusedConv = context.fused
        g = in_channels_last(g)
        if fused.activation is not NONE:
            g = fused.activation.backward(g, *context.saved_tensors)
        before, beside, _ = context.needs_input_grad
        return fused.input_gradient(g, context.shape) if before else None, g if beside else None, None


class PadShortcut(nn.Module):
    """A ResNet's shortcut without parameters: every `stride`-th pixel, with planes of zeros around the planes.

    Planes `(B, C, H, W)` to `(B, before + C + after, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))

    def compute(self, x: Tensor, other: Tensor | None = None, padded: bool = False) -> Tensor:
        """The same without autograd. There is nothing to add, and no padding of the pixels."""
        seen = x[:, :, :: self.stride, :: self.stride]
        batch, planes, height, width = seen.shape
        found = x.new_zeros(batch, height, width, self.before + planes + self.after).permute(0, 3, 1, 2)
        found[:, self.before : self.before + planes] = seen
        return found

    def input_gradient(self, g: Tensor, shape: torch.Size, accumulate_into: Tensor | None = None) -> Tensor:
        seen = g[:, self.before : self.before + shape[1]]
        if accumulate_into is None:
            return spread(seen, shape, self.stride, self.stride)
        accumulate_into[:, :, :: self.stride, :: self.stride].add_(seen)
        return accumulate_into


class PooledHead(nn.Module):
    """Average pooling of planes `shape` (C, H, W), and the linear `layer` behind it, with its gradient for a tape.

    `pool` takes planes to `(B, C, h, w)` or `(B, C)`; `in_dtype`: that of the planes, where it is not the layer's own;
    it may be set.
    """

    in_dtype: torch.dtype | None = None

    def __init__(self, layer: nn.Linear, pool: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layer, self.pool, self.shape = layer, pool, shape
        _, height, width = shape
        self.pooled = pool(torch.eye(height * width).view(-1, 1, height, width)).flatten(1).detach()
        """(H W, h w): what each pixel gives to each pooled one."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.pool(x.to(self.layer.weight.dtype)).flatten(1))
        return logits

    def input_gradient(self, g: Tensor) -> Tensor:
        """The gradient by the planes from that by the outputs `g (B, K)`."""
        planes, height, width = self.shape
        by_pooled = (g @ self.layer.weight).view(len(g), planes, -1).transpose(1, 2)  # (B, h w, C)
        found = (self.pooled.to(g.dtype) @ by_pooled).view(len(g), height, width, planes).permute(0, 3, 1, 2)
        return found if self.in_dtype is None else found.to(self.in_dtype)


# The gradient of a convolution by its input. conv2d's own (aten::convolution_backward) is slower than a convolution for
# few planes and for strides; but the gradient is itself a convolution of grad_output with the flipped kernel: as it is
# for stride 1; for a stride after zeros are put between the pixels, or for each phase of the stride alone. Sums are
# taken in another order, so that the last digits differ.

FEW = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
"""Input planes up to which a stride's four phases at once were faster than torch's gradient."""
NARROW = 64
"""Outputs up to which the taps of a single input plane were faster as a matrix product."""


def input_gradient(layer: nn.Conv2d, weight: Tensor) -> InputGradient:
    """The fastest way for `layer`, which has zero padding by numbers. `weight (O, C/groups, k, l)`."""
    kernel, stride, padding = layer.kernel_size, layer.stride, padding_of(layer)
    near = all(pad < size for pad, size in zip(padding, kernel, strict=True)) and layer.dilation == (1, 1)
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    if near and stride == (1, 1) and layer.in_channels == 1 and layer.out_channels <= NARROW:
        return _by_taps(weight, padding)
    if near and stride == (1, 1) and (layer.groups == 1 or depthwise):
        around = kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]
        flipped = PrepackedConv(weight, groups=layer.groups, flipped=True)
        return lambda g, shape, into: flipped(g, around, other=into)
    if kernel == (1, 1) and padding == (0, 0) and layer.groups == 1:  # most inputs behind a stride are never seen
        single = PrepackedConv(weight, flipped=True)
        return lambda g, shape, into: _sum(spread(single(g), shape, *stride), into)
    if near and kernel == (3, 3) and stride == (2, 2) and padding == (1, 1):
        if layer.groups == 1 and layer.in_channels <= FEW:
            return _by_phases(weight)
        if depthwise and weight.dtype == torch.bfloat16:  # torch's own takes many times as long (nets/cpu_bfloat16.py)
            wide = PrepackedConv(weight, groups=layer.groups, flipped=True)
            return lambda g, shape, into: wide(spread(g, (*g.shape[:2], *shape[2:]), 2, 2), (1, 1), other=into)
    return _by_torch(layer, weight, padding)


def _sum(gradient: Tensor, into: Tensor | None) -> Tensor:
    return gradient if into is None else into.add_(gradient)


def spread(values: Tensor, shape: tuple[int, ...], down: int, right: int) -> Tensor:
    """Zeros of `shape`, channels last, with `values` at each `down`-th row and `right`-th column."""
    found = values.new_zeros(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    found[:, :, ::down, ::right] = values
    return found


def _by_taps(weight: Tensor, padding: tuple[int, int]) -> InputGradient:
    """Of one input plane: what each tap of the kernel sends back is a matrix product, and is added where it belongs."""
    height, width = weight.shape[2:]
    # In float32 also of reduced precision: so narrow a product was slower in bfloat16.
    taps = weight.flatten(1).t().float().contiguous()  # (k * l, O)

    def gradient(g: Tensor, shape: torch.Size, into: Tensor | None) -> Tensor:
        rows, columns = g.shape[2:]
        sent = (taps @ g.float().permute(0, 2, 3, 1).flatten(0, 2).t()).view(-1, len(g), rows, columns)
        found = sent.new_zeros(len(g), rows + height - 1, columns + width - 1)
        for place, part in enumerate(sent.unbind()):
            top, left = divmod(place, width)
            found[:, top : top + rows, left : left + columns].add_(part)  # `+=` would copy the sum onto itself
        found = found[:, padding[0] :, padding[1] :][:, : shape[2], : shape[3]].unsqueeze(1).to(g.dtype)
        return _sum(found, into)

    return gradient


def _by_phases(weight: Tensor) -> InputGradient:
    """Of a 3x3 kernel with stride 2: inputs at even and odd rows and columns, four phases, as planes of their own.

    An even row is met by the kernel's middle row alone, an odd one by its last and, one output further, its first: one
    2x2 convolution computes all four, which are then sorted in.
    """
    outputs, inputs = weight.shape[:2]
    phases = weight.new_zeros(2, 2, inputs, outputs, 2, 2)
    met = {0: ((1, 0),), 1: ((2, 0), (0, 1))}  # by parity: kernel rows, and outputs further
    for odd_row, rows in met.items():
        for odd_column, columns in met.items():
            for row, below in rows:
                for column, beside in columns:
                    phases[odd_row, odd_column, :, :, below, beside] = weight[:, :, row, column].t()
    conv = PrepackedConv(phases.view(4 * inputs, outputs, 2, 2))

    def gradient(g: Tensor, shape: torch.Size, into: Tensor | None) -> Tensor:
        found = conv(g, (1, 1))[:, :, 1:, 1:]
        rows, columns = found.shape[2:]
        found = found.permute(0, 2, 3, 1).reshape(len(g), rows, columns, 2, 2, inputs).transpose(2, 3)
        found = found.reshape(len(g), 2 * rows, 2 * columns, inputs)
        return _sum(found[:, : shape[2], : shape[3]].permute(0, 3, 1, 2), into)

    return gradient


def _by_torch(layer: nn.Conv2d, weight: Tensor, padding: tuple[int, int]) -> InputGradient:
    last = weight.contiguous(memory_format=torch.channels_last)

    def gradient(g: Tensor, shape: torch.Size, into: Tensor | None) -> Tensor:
        # Of the inputs only shape and layout are looked at.
        x = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, last, None, layer.stride, padding, layer.dilation, False, [0, 0], layer.groups, [True, False, False]
        )[0]
        return _sum(found, into)

    return gradient


def padding_of(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of padding, of a layer that gives them as numbers."""
    assert not isinstance(layer.padding, str)
    return int(layer.padding[0]), int(layer.padding[1])

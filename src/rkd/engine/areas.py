"""Which outputs of a layer a changed window of its inputs reaches, and which inputs these outputs look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Window = tuple[int, int, int, int]
"""Top, bottom, left, right; bottom and right are the first outside."""

NONE: Window = (0, 0, 0, 0)


@dataclass(frozen=True)
class Kernel:
    """Which inputs an output looks at, along both axes."""

    size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Kernel:
        """Of a convolution whose padding is given in numbers."""
        assert not isinstance(conv.padding, str)
        return cls(conv.kernel_size, conv.stride, conv.padding, conv.dilation)

    def along(self, axis: int) -> tuple[int, int, int]:
        """Padding, stride, and how far the last pixel lies from the first."""
        return self.padding[axis], self.stride[axis], self.dilation[axis] * (self.size[axis] - 1)


def area(window: Window) -> int:
    return (window[1] - window[0]) * (window[3] - window[2])


def union(windows: Sequence[Window]) -> Window:
    """The smallest window around those that are not empty."""
    there = [window for window in windows if area(window)]
    if not there:
        return NONE
    tops, bottoms, lefts, rights = zip(*there, strict=True)
    return min(tops), max(bottoms), min(lefts), max(rights)


def common(one: Window, other: Window) -> Window:
    """What is in both."""
    top, left = max(one[0], other[0]), max(one[2], other[2])
    bottom, right = min(one[1], other[1]), min(one[3], other[3])
    return (top, bottom, left, right) if top < bottom and left < right else NONE


def inside(window: Window, around: Window) -> Window:
    """The same, counted from the first pixel of the window `around` it."""
    top, _, left, _ = around
    return window[0] - top, window[1] - top, window[2] - left, window[3] - left


def reached(kernel: Kernel, window: Window, shape: tuple[int, ...]) -> Window:
    """The outputs, of `shape` (O, h, w), whose kernel meets the window."""
    edges: list[int] = []
    for axis in (0, 1):
        low, high = window[2 * axis], window[2 * axis + 1]
        pad, stride, far = kernel.along(axis)
        first = max(-(-(low + pad - far) // stride), 0)
        last = min((high - 1 + pad) // stride + 1, shape[1 + axis])
        edges += [first, max(first, last)] if high > low else [0, 0]
    return edges[0], edges[1], edges[2], edges[3]


def looked_at(kernel: Kernel, window: Window, height: int, width: int) -> tuple[Window, tuple[int, int, int, int]]:
    """The inputs, on planes of height x width, that the outputs in `window` look at, and how many zeros to put to the
    left, right, top and bottom of them for the padding."""
    spans, beyond = [], []
    for axis, length in ((0, height), (1, width)):
        pad, stride, far = kernel.along(axis)
        low, high = window[2 * axis] * stride - pad, (window[2 * axis + 1] - 1) * stride - pad + far + 1
        first = min(max(low, 0), length)
        last = max(min(high, length), first)  # a kernel may look at nothing but padding
        before = min(max(-low, 0), high - low)
        spans += [first, last]
        beyond.append((before, high - low - before - (last - first)))
    return (spans[0], spans[1], spans[2], spans[3]), (*beyond[1], *beyond[0])


def cut(planes: Tensor, window: Window) -> Tensor:
    """The window of planes `(..., H, W)`, as a view."""
    return planes[..., window[0] : window[1], window[2] : window[3]]

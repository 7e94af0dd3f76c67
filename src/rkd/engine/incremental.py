"""Logits of images of which only a patch has changed, from the layers' outputs of before, on a tape of fused layers.

A convolution's output changes only where its kernel meets the change: a patch of 3 pixels becomes one of 5 behind a 3x3
convolution, and one of 3 or 4 behind a second one of stride 2. The receptive field of a change is followed until it is
a good part of the planes, and from there on the tape goes on with whole planes. Same function up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.attack import Patches
from ..nets.memory_format import in_channels_last
from ..nets.net import micro_batches
from .onednn import FusedConv, PadShortcut
from .tape import Step, Tape

SHARE = 0.35
"""Of a plane: a larger window is followed no further."""
MAX_BYTES = 2**30
"""Of outputs to keep."""

Window = tuple[int, int, int, int]
"""Top, bottom, left, right; bottom and right are the first outside."""

EMPTY: Window = (0, 0, 0, 0)


# Receptive fields


@dataclass(frozen=True)
class Kernel:
    """Which inputs an output looks at, along both axes."""

    size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)

    @classmethod
    def of(cls, layer: FusedConv | PadShortcut) -> Kernel:
        if isinstance(layer, PadShortcut):
            return cls(stride=(layer.stride, layer.stride))
        conv = layer.layer
        assert not isinstance(conv.padding, str)
        return cls(conv.kernel_size, conv.stride, conv.padding, conv.dilation)

    def single(self) -> bool:
        """Whether each output looks at the pixel in its own place alone."""
        return self == Kernel(dilation=self.dilation)

    def reached(self, window: Window, shape: tuple[int, ...]) -> Window:
        """The outputs, of `shape` (O, h, w), that look at the window."""
        edges: list[int] = []
        for axis in (0, 1):
            low, high = window[2 * axis], window[2 * axis + 1]
            pad, stride, far = self._along(axis)
            first = max(-(-(low + pad - far) // stride), 0)
            last = min((high - 1 + pad) // stride + 1, shape[1 + axis])
            edges += [first, max(first, last)] if high > low else [0, 0]
        return edges[0], edges[1], edges[2], edges[3]

    def looked_at(self, window: Window, height: int, width: int) -> tuple[Window, tuple[int, int, int, int]]:
        """The inputs, on planes of height x width, that the outputs in `window` look at, and how many zeros to put to
        the left, right, top and bottom of them for the padding."""
        spans, beyond = [], []
        for axis, length in ((0, height), (1, width)):
            pad, stride, far = self._along(axis)
            low, high = window[2 * axis] * stride - pad, (window[2 * axis + 1] - 1) * stride - pad + far + 1
            first = min(max(low, 0), length)
            last = max(min(high, length), first)  # a kernel may look at nothing but padding
            before = min(max(-low, 0), high - low)
            spans += [first, last]
            beyond.append((before, high - low - before - (last - first)))
        return (spans[0], spans[1], spans[2], spans[3]), (*beyond[1], *beyond[0])

    def _along(self, axis: int) -> tuple[int, int, int]:
        """Padding, stride, and how far the last pixel lies from the first."""
        return self.padding[axis], self.stride[axis], self.dilation[axis] * (self.size[axis] - 1)


def area(window: Window) -> int:
    return (window[1] - window[0]) * (window[3] - window[2])


def union(windows: Sequence[Window]) -> Window:
    """The smallest window around those that are not empty."""
    filled = [window for window in windows if area(window)]
    if not filled:
        return EMPTY
    tops, bottoms, lefts, rights = zip(*filled, strict=True)
    return min(tops), max(bottoms), min(lefts), max(rights)


def common(one: Window, other: Window) -> Window:
    """What is in both."""
    top, left = max(one[0], other[0]), max(one[2], other[2])
    bottom, right = min(one[1], other[1]), min(one[3], other[3])
    return (top, bottom, left, right) if top < bottom and left < right else EMPTY


def inside(window: Window, around: Window) -> Window:
    """The same, counted from the first pixel of the window `around` it."""
    top, _, left, _ = around
    return window[0] - top, window[1] - top, window[2] - left, window[3] - left


def cut(planes: Tensor, window: Window) -> Tensor:
    """The window of planes `(..., H, W)`, as a view."""
    return planes[..., window[0] : window[1], window[2] : window[3]]


# Following a change


class Route:
    """How far changes of one size are followed along a tape: through its steps before `end`.

    `shapes`: of each value, (C, H, W). `kept`: the values that later steps look at beyond the change.
    """

    def __init__(self, tape: Tape, shapes: list[tuple[int, ...]], height: int, width: int) -> None:
        self.tape, self.shapes = tape, shapes
        self.kernels = [Kernel.of(step.layer) for step in tape.steps]
        self._known: dict[Window, list[Window] | None] = {}
        top, left = (shapes[0][1] - height) // 2, (shapes[0][2] - width) // 2
        middle = self._fields(len(tape.steps), (top, top + height, left, left + width))
        large = [area(w) > SHARE * shape[1] * shape[2] for w, shape in zip(middle, shapes, strict=True)]
        self.end = 0 if large[0] else (large.index(True) - 1 if any(large) else len(tape.steps))
        self.kept = {place for place in range(self.end + 1) if self._is_kept(place)}
        later = [place for step in tape.steps[self.end :] for place in (step.source, step.other)]
        self.whole = self.kept.intersection([*later, tape.source])
        """The kept values that are looked at as whole planes."""
        self.bytes = sum(4 * shapes[place][0] * shapes[place][1] * shapes[place][2] for place in self.kept)
        """Kept of one image."""

    def windows(self, start: Window) -> list[Window] | None:
        """The window of each value before `end`; None where one that is not kept would have to be known around it."""
        if start not in self._known:
            found = self._fields(self.end, start)
            steps = self.tape.steps[: self.end]
            known = all(step.source in self.kept or found[step.source] == found[n + 1] for n, step in enumerate(steps))
            self._known[start] = found if known else None
        return self._known[start]

    def _fields(self, end: int, start: Window) -> list[Window]:
        """The window of each value that a change of the images at `start` reaches; an empty one has no area."""
        found = [start]
        for number, step in enumerate(self.tape.steps[:end]):
            window = self.kernels[number].reached(found[step.source], self.shapes[number + 1])
            found.append(window if step.other is None else union([window, found[step.other]]))
        return found

    def _is_kept(self, place: int) -> bool:
        """Not if a convolution of single pixels alone looks at it: that needs no more than the change."""
        users = [n for n, step in enumerate(self.tape.steps) if place in (step.source, step.other)]
        if len(users) != 1 or users[0] >= self.end or place == self.tape.source:
            return True
        return self.tape.steps[users[0]].other == place or not self.kernels[users[0]].single()


class TapePatches(Patches):
    """Images whose patches are followed along a tape.

    `before`: what the tape takes of images, pixel by pixel. `micro_batch`: how many images the layers behind the
    followed ones take at once.
    """

    def __init__(
        self, logits: Callable[[Tensor], Tensor], x: Tensor, tape: Tape, before: Callable[[Tensor], Tensor],
        micro_batch: int,
    ) -> None:  # fmt: skip
        super().__init__(logits, x)
        self._tape, self._before, self._micro_batch = tape, before, micro_batch
        self._routes: dict[tuple[int, int], Route] = {}
        self._route: Route | None = None
        """Whose values are kept."""
        self._kept: dict[int, Tensor] = {}
        """By their places, for the images as they are."""
        self._changed: list[tuple[Tensor, Tensor, Tensor | None]] = []
        """Windows of what is kept, what they become where the change stays, and what they were if they are that now."""
        with torch.no_grad():
            self._shapes = [tuple(value.shape[1:]) for value in tape.values(before(x[:1]))]

    def settle(self, better: Tensor) -> None:
        super().settle(better)
        # Few changes stay: a mask over all windows would take longer.
        rows = better.nonzero().squeeze(1)
        for window, new, old in self._changed:
            if old is not None:
                window.copy_(old)
            if len(rows):
                window[rows] = new[rows]
        self._changed = []

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self._kept = {place: in_channels_last(value[rows]) for place, value in self._kept.items()}

    def _answer(self, rows: slice, columns: slice) -> Tensor:
        size = (rows.stop - rows.start, columns.stop - columns.start)
        if size not in self._routes:
            self._routes[size] = Route(self._tape, self._shapes, *size)
        route = self._routes[size]
        where = route.windows((rows.start, rows.stop, columns.start, columns.stop)) if route.end else None
        if where is None or len(self.x) * route.bytes > MAX_BYTES:
            self._route, self._kept = None, {}
            return super()._answer(rows, columns)
        with torch.no_grad():
            if self._route is None or self._route.end != route.end:
                new = self._patch.clone()
                self._patch.copy_(self._old)
                self._fill(route)
                self._patch.copy_(new)
            self._follow(route, where)
            parts = micro_batches(len(self.x), self._micro_batch)
            return torch.cat([self._finish(route, part) for part in parts])

    def _fill(self, route: Route) -> None:
        """Compute what is kept, for the images as they are."""
        self._route, self._kept = route, {}
        for part in micro_batches(len(self.x), self._micro_batch):
            values: list[Any] = [in_channels_last(self._before(self.x[part]))]
            for step in self._tape.steps[: route.end]:
                values.append(step.compute(values))
            for place in route.kept:
                if place not in self._kept:
                    planes, height, width = self._shapes[place]
                    self._kept[place] = values[place].new_empty(len(self.x), height, width, planes).permute(0, 3, 1, 2)
                self._kept[place][part] = values[place]

    def _follow(self, route: Route, where: list[Window]) -> None:
        """What a change of the images makes of the values before the route's end; those that are looked at as whole
        planes from there on are put in their place among what is kept."""
        fresh: dict[int, Tensor] = {0: self._before(cut(self.x, where[0]))}
        for number, step in enumerate(self._tape.steps[: route.end]):
            window = where[number + 1]
            if area(window):
                fresh[number + 1] = self._compute(step, route.kernels[number], window, fresh, where)
        for place in route.kept & fresh.keys():
            kept, old = cut(self._kept[place], where[place]), None
            if place in route.whole:
                old = kept.clone()
                kept.copy_(fresh[place])
            self._changed.append((kept, fresh[place], old))

    def _compute(
        self, step: Step, kernel: Kernel, window: Window, fresh: dict[int, Tensor], where: list[Window]
    ) -> Tensor:
        """A step's outputs in `window`."""
        other = None if step.other is None else self._seen(step.other, window, fresh, where)
        _, height, width = self._shapes[step.source]
        around, beyond = kernel.looked_at(window, height, width)
        seen = self._seen(step.source, around, fresh, where)
        if any(beyond):
            seen = in_channels_last(F.pad(seen, beyond))
        return step.layer.compute(seen, other, padded=True)

    def _seen(self, place: int, window: Window, fresh: dict[int, Tensor], where: list[Window]) -> Tensor:
        """A value in `window`, with what has changed of it; channels last."""
        new, changed = fresh.get(place), where[place]
        if new is not None and changed == window:
            return in_channels_last(new)
        last = cut(self._kept[place], window).permute(0, 2, 3, 1)
        seen = last.clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
        if new is not None and area(both := common(changed, window)):
            cut(seen, inside(both, window)).copy_(cut(new, inside(both, changed)))
        return seen

    def _finish(self, route: Route, rows: slice) -> Tensor:
        """The logits of the images at `rows`, from the values kept."""
        values: list[Any] = [None] * (len(self._tape.steps) + 1)
        for place, value in self._kept.items():
            values[place] = value[rows]
        return self._tape.finish(values, route.end).float()

"""Logits of images of which only a window has changed, on a tape of fused layers.

As in `local`, for nets that are too large for its way: there the images are the last dimension, so that windows of
many images are one matrix product; here they are the first, as oneDNN's convolutions like them. A window is followed
until it has grown to a good part of the planes, and from there on the tape goes on with whole planes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.attack import Patches
from ..nets.memory_format import in_channels_last
from ..nets.net import micro_batches
from .areas import Kernel, Window, area, common, cut, inside, looked_at, reached, union
from .tape import Step, Tape, computed

SHARE = 0.35
"""Of a plane: a larger window is followed no further."""
MOST = 2**30
"""Bytes of outputs to keep at most."""


class Route:
    """How far windows of one size are followed along a tape: through its steps before `end`.

    `shapes`: of each value, (C, H, W). `kept`: the values that somebody looks at beyond the window.
    """

    def __init__(self, tape: Tape, shapes: list[tuple[int, ...]], height: int, width: int) -> None:
        self.tape, self.shapes = tape, shapes
        self._known: dict[Window, list[Window] | None] = {}
        top, left = (shapes[0][1] - height) // 2, (shapes[0][2] - width) // 2
        middle = _areas(tape.steps, shapes, (top, top + height, left, left + width))
        large = [area(w) > SHARE * shape[1] * shape[2] for w, shape in zip(middle, shapes, strict=True)]
        self.end = 0 if large[0] else (large.index(True) - 1 if any(large) else len(tape.steps))
        self.kept = {place for place in range(self.end + 1) if self._is_kept(place)}
        later = [place for step in tape.steps[self.end :] for place in (step.source, step.other)]
        self.whole = self.kept.intersection([*later, tape.source])
        """The kept values that are looked at as whole planes."""

    def windows(self, start: Window) -> list[Window] | None:
        """The window of each value before `end`; None where one that is not kept would have to be known around it."""
        if start not in self._known:
            steps = self.tape.steps[: self.end]
            found = _areas(steps, self.shapes, start)
            known = all(
                step.source in self.kept or found[step.source] == found[number + 1] for number, step in enumerate(steps)
            )
            self._known[start] = found if known else None
        return self._known[start]

    def bytes(self, each: int) -> int:
        """Kept of one image, of numbers of `each` bytes."""
        return sum(each * self.shapes[place][0] * self.shapes[place][1] * self.shapes[place][2] for place in self.kept)

    def _is_kept(self, place: int) -> bool:
        """Not if a convolution of single pixels alone looks at it: that needs no more than the window."""
        users = [step for step in self.tape.steps if place in (step.source, step.other)]
        inside = [step for step in self.tape.steps[: self.end] if place in (step.source, step.other)]
        alone = len(users) == len(inside) == 1 and place != self.tape.source
        return not (alone and users[0].other != place and _single(users[0].layer.kernel))


class TapeWindows(Patches):
    """Images whose windows are followed along a tape.

    `before`: what the tape gets of images, pixel by pixel. `piece`: how many images the layers behind the followed
    ones take at once.
    """

    def __init__(
        self, logits: Callable[[Tensor], Tensor], x: Tensor, tape: Tape, before: Callable[[Tensor], Tensor], piece: int
    ) -> None:
        super().__init__(logits, x)
        self._tape, self._before, self._piece = tape, before, piece
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
        route = self._route_of(rows.stop - rows.start, columns.stop - columns.start)
        where = route.windows((rows.start, rows.stop, columns.start, columns.stop)) if route.end else None
        if where is None or len(self.x) * route.bytes(4) > MOST:
            self._route, self._kept = None, {}
            return super()._answer(rows, columns)
        with torch.no_grad():
            if self._route is None or self._route.end != route.end:
                new = self._patch.clone()
                self._patch.copy_(self._old)
                self._fill(route)
                self._patch.copy_(new)
            self._follow(route, where)
            return torch.cat([self._finish(route, part) for part in micro_batches(len(self.x), self._piece)])

    def _route_of(self, height: int, width: int) -> Route:
        if (height, width) not in self._routes:
            self._routes[height, width] = Route(self._tape, self._shapes, height, width)
        return self._routes[height, width]

    def _fill(self, route: Route) -> None:
        """Compute what is kept, for the images as they are."""
        self._route, self._kept = route, {}
        for part in micro_batches(len(self.x), self._piece):
            values: list[Any] = [in_channels_last(self._before(self.x[part]))]
            for step in self._tape.steps[: route.end]:
                values.append(computed(step, values))
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
            if not area(window):
                continue
            other = None if step.other is None else self._seen(step.other, window, fresh, where)
            _, height, width = self._shapes[step.source]
            around, beyond = looked_at(step.layer.kernel, window, height, width)
            seen = self._seen(step.source, around, fresh, where)
            if any(beyond):
                seen = in_channels_last(F.pad(seen, beyond))
            fresh[number + 1] = step.layer.compute(seen, other, padded=True)
        for place in route.kept & fresh.keys():
            there, old = cut(self._kept[place], where[place]), None
            if place in route.whole:
                old = there.clone()
                there.copy_(fresh[place])
            self._changed.append((there, fresh[place], old))

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
        """The logits of the images at `rows`, from the values kept on."""
        values: list[Any] = [None] * (len(self._tape.steps) + 1)
        for place, value in self._kept.items():
            values[place] = value[rows]
        return self._tape.finish(values, route.end).float()


def _areas(steps: list[Step], shapes: list[tuple[int, ...]], start: Window) -> list[Window]:
    """The window of each value that a change of the images at `start` reaches; an empty one has no area."""
    found = [start]
    for number, step in enumerate(steps):
        window = reached(step.layer.kernel, found[step.source], shapes[number + 1])
        found.append(window if step.other is None else union([window, found[step.other]]))
    return found


def _single(kernel: Kernel) -> bool:
    """Whether each output looks at the pixel in its own place alone."""
    return kernel == Kernel(dilation=kernel.dilation)

"""Images that change in one window at a time: what a random search asks a net about."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .interfaces import Probe, Target


class Windows:
    """Images `x (B, C, H, W)` and a net's logits for them while one window of each is tried after another.

    A net can answer from what it knows of the images before the change; this one asks `logits` anew each time.
    """

    def __init__(self, logits: Probe, x: Tensor) -> None:
        self.logits = logits
        self.x = x.clone()
        self.asked: Callable[[int], None] = lambda count: None
        """Told of each question, with the number of images."""
        self._window = self._old = self.x[:, :, :0, :0]

    def ask(self, rows: slice, columns: slice, new: Tensor) -> Tensor:
        """The logits `(B, K)` of the images with `new (B, C, h, w)` at these rows and columns. `settle` comes next."""
        self._window = self.x[:, :, rows, columns]
        self._old = self._window.clone()
        self._window.copy_(new)
        self.asked(len(self.x))
        return self._answer(rows, columns)

    def settle(self, better: Tensor) -> None:
        """Images at `better (B,)`, a mask, keep their new window; the others get the old one back."""
        torch.where(better.view(-1, 1, 1, 1), self._window, self._old, out=self._window)

    def select(self, rows: Tensor) -> None:
        """Go on with the images at `rows`, a mask or positions, alone."""
        self.x = self.x[rows]

    def _answer(self, rows: slice, columns: slice) -> Tensor:
        return self.logits(self.x)


class Asked(Windows):
    """Images for which a target answers; whoever leaves, leaves the target as well."""

    def __init__(self, target: Target, x: Tensor) -> None:
        super().__init__(target.logits, x)
        self._target = target

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self._target = self._target.select(rows)
        self.logits = self._target.logits


def windows(target: Target, x: Tensor) -> Windows:
    """The images `x` as the target's net can follow them best."""
    maker = getattr(target, "windows", None)
    return maker(x) if maker else Asked(target, x)

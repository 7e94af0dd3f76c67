"""Means of an epoch's losses without waiting for the device, and the watch for losses that are no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums of named numbers over the steps of an epoch, kept on the device.

    On the CPU a number can be looked at when it is there. On a GPU each look would stop the host until the device has
    caught up, so the running sum is copied to pinned memory behind the host's back and looked at when it has arrived,
    some steps late: a sum that was infinite or no number once stays so.

    `event`: makes what tells of a copy's arrival (`record()`, `query()`), `torch.cuda.Event` for a GPU; None looks at
    once. `watch=False`: somebody else looks for numbers that are not finite, and `add` always says yes.
    """

    def __init__(self, device: torch.device, event: Callable[[], Any] | None = None, watch: bool = True) -> None:
        self.steps = 0
        self._device = device
        self._watch = watch
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._late = event or (torch.cuda.Event if device.type == "cuda" else None)
        self._pinned = device.type == "cuda"
        self._copy: tuple[Tensor, Any] | None = None

    def add(self, values: Mapping[str, Tensor]) -> bool:
        """Add one step's numbers, scalars on the device, and say whether all that is known so far is finite.

        The first of them is watched. On a GPU the answer is about an earlier step.
        """
        names = tuple(values)
        step = torch.stack([value.detach().reshape(()).float() for value in values.values()])
        self._sums[names] = self._sums[names] + step if names in self._sums else step
        self.steps += 1
        if not self._watch:
            return True
        if self._late is None:
            return math.isfinite(step[0])
        finite = True
        if self._copy is not None and self._copy[1].query():
            finite = math.isfinite(self._copy[0])
            self._copy = None
        if self._copy is None:
            arrived = self._late()
            host = torch.empty((), pin_memory=self._pinned)
            host.copy_(self._sums[names][0], non_blocking=True)
            arrived.record()
            self._copy = host, arrived
        return finite

    def means(self) -> dict[str, float]:
        """Each number's sum over the steps so far, divided by their count. Waits for the device, once."""
        sums: dict[str, float] = {}
        for names, values in self._sums.items():
            for name, value in zip(names, values.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
        return {name: value / self.steps for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint within an epoch."""
        return {"steps": self.steps, "sums": [[list(names), values] for names, values in self._sums.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.steps = state["steps"]
        self._sums = {tuple(names): values.to(self._device, copy=True) for names, values in state["sums"]}
        self._copy = None

"""Means of an epoch's losses without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class RunningMeans:
    """Sums of named numbers over the steps of an epoch, kept on the device where they are until somebody asks."""

    def __init__(self) -> None:
        self.steps = 0
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's numbers, scalars on the device."""
        names = tuple(values)
        step = torch.stack([value.detach().reshape(()).float() for value in values.values()])
        self._sums[names] = self._sums[names].to(step.device) + step if names in self._sums else step
        self.steps += 1

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
        self._sums = {tuple(names): values.clone() for names, values in state["sums"]}

"""The words that every room shares: batches, views, modes, schedules, threat models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # recipes and options are read without torch
    from torch import Tensor

View = str
"""A version of the batch's images by name: `clean`, `adv`, `weak`, ..."""

Mode = Literal["eval", "train", "frozen"]
"""How a net runs. `frozen` uses batch statistics like `train` and leaves the running ones untouched."""

QueryKind = Literal["gradient", "forward"]
"""What an attack asks a net for: `gradient`, logits and their gradient by the images; `forward`, logits alone."""

Norm = Literal["Linf", "L2"]

Schedule = float | Callable[[float], float]
"""A number, or a function of the training progress in [0, 1]."""

Shape = tuple[int, int, int]
"""Channels, height, width of one image."""


def at(value: Schedule, progress: float) -> float:
    """The value of a number or schedule at `progress` in [0, 1]."""
    return float(value(progress)) if callable(value) else float(value)


def check_range(name: str, value: Schedule, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise ValueError unless a number, or a schedule wherever it is looked at, lies in [low, high]."""
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0) if callable(value) else (0.0,):
        if not low <= (now := at(value, progress)) <= high:
            when = f" at progress {progress:g}" if callable(value) else ""
            bounds = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise ValueError(f"{name} must be {bounds}, got {now:g}{when}")


@dataclass(frozen=True, slots=True)
class Batch:
    """What training and attacks see.

    `x (B, C, H, W)` float32 in [0, 1]; `y (B,)` int64 labels or `(B, K)` probabilities; `index (B,)` int64
    positions in the data set; `views`: further versions of the same images that an augmentation made; `version (B,)`
    int64, on the CPU whatever the device of the others: a number for each pair of image and augmented version of it,
    where teachers' answers are cached.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    views: Mapping[View, Tensor] = field(default_factory=dict)
    version: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def select(self, keep: Tensor | slice) -> Batch:
        """The samples at `keep`, a mask, positions `(B',)` or a slice. (Only a slice leaves a GPU's host unasked.)"""
        views = {name: images[keep] for name, images in self.views.items()}
        version = self.version
        if version is not None:
            version = version[keep if isinstance(keep, slice) else keep.to(version.device)]
        return Batch(self.x[keep], self.y[keep], self.index[keep], views, version)


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """What an attacker may do: a ball around each image. `eps` and `step_size` are in units of [0, 1] images."""

    norm: Norm = "Linf"
    eps: float = 8 / 255
    step_size: float = 2 / 255

    def with_eps(self, eps: float) -> ThreatModel:
        """The same attacker with another radius; the step size keeps its share of the radius."""
        scale = eps / self.eps if self.eps else 0.0
        return replace(self, eps=eps, step_size=self.step_size * scale)


def fraction(value: float) -> str:
    """`value` as the field writes it: `8/255` for a multiple of 1/255 below 1, unless a short decimal (0.2) says it."""
    times = value * 255
    short = f"{value:.3g}"
    if 0 < abs(value) < 1 and float(short) != value and abs(times - round(times)) < 1e-6 and round(times):
        return f"{round(times)}/255"
    return f"{value:.6g}"

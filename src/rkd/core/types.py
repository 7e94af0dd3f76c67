"""The words that every room shares: batches, views, modes, schedules, threat models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # recipes and options are read without torch
    from torch import Tensor

View = str
"""A version of the batch's images by name: `clean`, `adv`, `weak`, ..."""

Mode = Literal["eval", "train", "frozen"]
"""How a net runs. `frozen` uses batch statistics like `train` and leaves the running ones untouched."""

QueryKind = Literal["gradient", "forward"]
"""What an attack asks a net for: `gradient`, logits and their gradient by the images; `forward`, logits alone."""

Norm = Literal["Linf", "L2", "L1", "L0", "L0-values"]  # L0 counts pixels, their channels as one

Schedule = float | Callable[[float], float]
"""A number, or a function of the training progress in [0, 1]."""

Shape = tuple[int, int, int]
"""Channels, height, width of one image."""


def at(value: Schedule, progress: float) -> float:
    """The value of a number or schedule at `progress` in [0, 1]."""
    return float(value(progress)) if callable(value) else float(value)


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
class DerivedView:
    """A view that follows from others, such as 2x - x': `make(step)` returns its images `(B, C, H, W)`, each from that
    sample alone. They lie in [0, 1] unless `bounded` is false."""

    make: Callable[[Any], Tensor]
    bounded: bool = True


@dataclass(frozen=True, slots=True)
class Companion:
    """A net beside the student, which is not kept: it learns, or it follows the student.

    `of`: `student` for its architecture with weights of its own (a recipe or user may choose another one:
    `companions.NAME.model`), or a teacher's role for that very net, which goes on learning from there. `lr`: its
    learning rate as a share of the student's. `follows`: it learns nothing and is the moving average
    c <- follows c + (1 - follows) s of the student's weights; buffers are copied.
    """

    of: str = "student"
    lr: float = 1.0
    follows: Schedule | None = None


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

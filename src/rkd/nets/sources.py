"""Where nets come from: architectures, sources of teachers, and conversions of a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..core.types import Shape

if TYPE_CHECKING:  # references are read without torch
    from torch import nn

    from ..data.dataset import Dataset
    from .net import Net
    from .student import NetStudent


@runtime_checkable
class Model(Protocol):
    """An architecture. Its instance builds a net for images of `shape` and `classes` classes.

    The net gets images already normalised and returns logits `(B, classes)`; it holds no softmax.
    """

    def __call__(self, shape: Shape, classes: int) -> nn.Module: ...


@runtime_checkable
class Conversion(Protocol):
    """A change of the student before training: `--student resnet18+aux-bn`."""

    def __call__(self, student: NetStudent) -> NetStudent: ...


@dataclass(frozen=True, slots=True)
class TeacherReference:
    """One `--teacher`, read: `[ROLE=]MODEL[@FILE[#KEY]]`, or a folder. `text` is what was typed, without the role.

    `options` are those of the model, `strip` the beginning of names in the file that is taken off; `classes`: for each
    class of the data the net's output that answers to it, where they differ; `normalize`: what a catalogue says that
    the net expects, where neither user nor file say it.
    """

    text: str
    role: str
    model: str | None = None
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    strip: str = ""
    classes: tuple[int, ...] = ()
    normalize: str = "auto"


@runtime_checkable
class TeacherSource(Protocol):
    """A place where teachers come from: a weights file, a run, a hub."""

    def __call__(self, reference: TeacherReference, build: Callable[..., Net], data: Dataset) -> nn.Module | None:
        """The teacher's net, taking images in [0, 1]; None if the reference is not for this source.

        `build(NAME, options={}, classes=None)` makes an untrained `rkd.nets.net.Net` of that model, normalised for
        `data` and with its classes, or so many.
        """

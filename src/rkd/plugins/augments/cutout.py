"""Cutout: a square of each image is blanked, at a random place that may reach over the edge.

The square's centre is uniform over the image's pixels; it covers `length // 2` pixels before and behind the
centre, so an odd `length` acts as the even number below it, as in the official script (`util/cutout.py`). There the
square holds 0 after normalisation, which is the data set's mean colour; here images are in [0, 1] and `fill` says
it, black by default.

References: devries2017improved
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rkd.plugin import Batch, ConfigError, Noise, Shape, hookimpl


@dataclass
class Cutout:
    """Blank a random square of each image.

    Changes `x` alone; further views stay what their makers made of them.

    length: side of the square in pixels; the paper's 16 for CIFAR-10 and 8 for CIFAR-100.
    fill: the value it gets, in [0, 1].
    """

    length: int = 16
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ConfigError(f"cutout: length must be 0 or more pixels, got {self.length}")
        if not 0 <= self.fill <= 1:
            raise ConfigError(f"cutout: fill must be in [0, 1], got {self.fill}")

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        row, column = _centres(noise, batch.x.shape)
        rows = self._covered(row, batch.x.shape[-2])[:, None, :, None]
        columns = self._covered(column, batch.x.shape[-1])[:, None, None, :]
        return replace(batch, x=batch.x.masked_fill(rows & columns, self.fill))

    def variants(self, shape: Shape) -> int:
        return shape[-2] * shape[-1]

    def variant(self, noise: Noise, shape: Shape) -> Tensor:
        row, column = _centres(noise, shape)
        return row * shape[-1] + column

    def _covered(self, centre: Tensor, side: int) -> Tensor:
        """`(B, side)` true within `length // 2` of the centre `(B,)`."""
        centre = centre.unsqueeze(1)
        pixel = torch.arange(side, device=centre.device)
        return (pixel >= centre - self.length // 2) & (pixel < centre + self.length // 2)


def _centres(noise: Noise, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows and columns, `(B,)` each."""
    height, width = shape[-2:]
    place = noise.uniform((2,))
    return (place[:, 0] * height).long().clamp(max=height - 1), (place[:, 1] * width).long().clamp(max=width - 1)


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"cutout": Cutout}

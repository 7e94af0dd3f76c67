"""Cutout: a square of each image is blanked, at a random place that may reach over the edge.

The square's centre is uniform over the image's pixels; it covers `length // 2` pixels before and behind the
centre, so an odd `length` acts as the even number below it, as in the official script (`util/cutout.py`). There the
square holds 0 after normalisation, which is the data set's mean colour; here images are in [0, 1] and `fill` says
it, black by default.

```bibtex
@article{devries2017improved,
  author  = {DeVries, Terrance and Taylor, Graham W.},
  title   = {Improved Regularization of Convolutional Neural Networks with Cutout},
  journal = {arXiv preprint arXiv:1708.04552},
  year    = {2017}
}
```
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rkd.core.errors import ConfigError
from rkd.core.hookspecs import hookimpl
from rkd.core.random import Noise
from rkd.core.types import Batch


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
        height, width = batch.x.shape[-2:]
        place = noise.uniform((2,))
        rows = self._covered(place[:, 0], height)[:, None, :, None]
        columns = self._covered(place[:, 1], width)[:, None, None, :]
        return replace(batch, x=batch.x.masked_fill(rows & columns, self.fill))

    def _covered(self, place: torch.Tensor, side: int) -> torch.Tensor:
        """`(B, side)` true within `length // 2` of the centre that `place (B,)` in [0, 1) picks."""
        centre = (place * side).long().clamp(max=side - 1).unsqueeze(1)
        pixel = torch.arange(side, device=place.device)
        return (pixel >= centre - self.length // 2) & (pixel < centre + self.length // 2)


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"cutout": Cutout}

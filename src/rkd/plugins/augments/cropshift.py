"""CropShift: cut a few rows and columns off, and put the rest back on black at a random place.

    strength s from `low` to `high`;   columns c from 0 to s, rows s - c
    cut c columns and s - c rows off the image, at random sides;   move the rest by up to as many, on black

All draws are uniform over whole numbers. Against `crop` with padding the image loses as much as it moves in either
direction, but the parts are no longer bound to one another: more variety at the same loss. It is the first half of the
schedule that takes CropShift and then IDBH.

The authors' code excludes its upper bound (`CropShift(0, 11)` draws 0 to 10); here `high` is included. A strength that
would leave nothing of a small image is lowered until one row and one column stay.

References: li2023data
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rkd.plugin import Batch, ConfigError, Noise, hookimpl

from .crop import shifted


@dataclass
class CropShift:
    """Cut rows and columns off, and put the rest back on black at a random place (Li and Spratling, 2023).

    Changes `x` alone; further views stay what their makers made of them.

    low, high: fewest and most rows and columns, together, that are cut off.
    since, until: the part of the training during which it acts.
    """

    low: int = 0
    high: int = 10
    since: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1024:
            raise ConfigError(f"cropshift: 0 <= low <= high <= 1024 is needed, got {self.low} and {self.high}")

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        height, width = batch.x.shape[-2:]
        high = min(self.high, height - 1, width - 1)
        draws = noise.uniform((6,))
        strength = min(self.low, high) + _whole(draws[:, 0], torch.full_like(draws[:, 0], high - min(self.low, high)))
        columns = _whole(draws[:, 1], strength)
        rows = strength - columns
        left, top = _whole(draws[:, 2], columns), _whole(draws[:, 3], rows)
        right, down = _whole(draws[:, 4], columns), _whole(draws[:, 5], rows)
        kept_rows, kept_columns = _inside(top, height - rows, height), _inside(left, width - columns, width)
        kept = kept_rows[:, None, :, None] & kept_columns[:, None, None, :]
        # Output row i is row i + down - rows + top of the image.
        x = shifted(batch.x * kept, high + top + down - rows, high + left + right - columns, high)
        return replace(batch, x=x)


def _whole(uniform: Tensor, most: Tensor) -> Tensor:
    """`(B,)` whole numbers, uniform from 0 to `most` included."""
    return torch.minimum((uniform * (most + 1)).long(), most.long())  # a product may round up


def _inside(first: Tensor, count: Tensor, length: int) -> Tensor:
    """`(B, length)`: true for the `count` places from `first` on."""
    place = torch.arange(length, device=first.device)
    return (place >= first.unsqueeze(1)) & (place < (first + count).unsqueeze(1))


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"cropshift": CropShift}

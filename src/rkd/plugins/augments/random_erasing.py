"""Random erasing: a rectangle of each image, of random size, shape and place, is blanked.

The area is uniform in `scale` (shares of the image), the logarithm of height / width uniform in that of `ratio`; of
ten such draws the first that is smaller than the image in both directions counts, as in torchvision's `RandomErasing`,
whose defaults these are. If none fits, the image stays. The paper fills with random values or a mean; torchvision
and IDBH with 0, which is black here.

References: zhong2020random
"""

import math
from dataclasses import dataclass, replace

import torch

from rkd.plugin import Batch, ConfigError, Noise, hookimpl

TRIES = 10


@dataclass
class RandomErasing:
    """Blank a random rectangle of each image.

    Changes `x` alone; further views stay what their makers made of them.

    p: the probability, for each image.
    scale: least and largest share of the image that is blanked.
    ratio: least and largest height as a multiple of the width.
    fill: the value it gets, in [0, 1].
    since, until: the part of the training during which it acts.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: float = 0.0
    since: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"random-erasing: p must be a probability from 0 to 1, got {self.p}")
        if not 0 <= self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"random-erasing: scale needs two rising shares in [0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"random-erasing: ratio needs two rising numbers above 0, got {self.ratio}")
        if not 0 <= self.fill <= 1:
            raise ConfigError(f"random-erasing: fill must be in [0, 1], got {self.fill}")

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        height, width = batch.x.shape[-2:]
        area = height * width * noise.uniform((TRIES,), *self.scale)
        ratio = noise.uniform((TRIES,), *map(math.log, self.ratio)).exp()
        rows, columns = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (rows < height) & (columns < width)
        first = fits.long().argmax(1, keepdim=True)  # of equal ones, the first
        rows, columns = rows.gather(1, first), columns.gather(1, first)
        draws = noise.uniform((3,))
        top = (draws[:, :1] * (height - rows + 1)).long()
        left = (draws[:, 1:2] * (width - columns + 1)).long()
        row, column = (torch.arange(side, device=batch.x.device) for side in (height, width))
        down, across = (row >= top) & (row < top + rows), (column >= left) & (column < left + columns)
        chosen = fits.any(1) & (draws[:, 2] < self.p)
        box = down[:, None, :, None] & across[:, None, None, :] & chosen[:, None, None, None]
        return replace(batch, x=batch.x.masked_fill(box, self.fill))


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"random-erasing": RandomErasing}

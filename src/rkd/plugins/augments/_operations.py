"""Changes of a batch's images, each by a strength of its own: what AutoAugment and IDBH draw from. No hooks.

A strength is `(B, 1, 1, 1)`; images `(B, C, H, W)` stay in [0, 1]. Every number follows from its own image in an order
that no batch changes: sums over an image are those of whole numbers. PIL's operations round to 8 bits each time; these
do so where they count levels (equalize, posterize, the mean of contrast).
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from rkd.plugin import ops

Operation = Callable[[Tensor, Tensor], Tensor]


def apply(x: Tensor, operations: Mapping[str, Operation], chosen: Tensor, strength: Tensor) -> Tensor:
    """Each image after the operation whose place in `operations` is `chosen (B,)`, or as it is where that is -1.

    On a CPU each is computed for its own images. On other devices all are computed for all: picking images would make
    the host wait.
    """
    strength, out = ops.per_image(strength, x), x.clone()
    for place, operation in enumerate(operations.values()):
        mine = chosen == place
        if x.device.type != "cpu":
            out = ops.where(mine, operation(x, strength), out)
        elif bool(mine.any()):
            out[mine] = operation(x[mine], strength[mine])
    return out


def levels(x: Tensor) -> Tensor:
    """The nearest of 256 levels, int64."""
    return (x * 255).round().long()


def blend(other: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """`other` at factor 0, `x` at 1, beyond it above 1."""
    return (other + factor * (x - other)).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """`(B, 1, H, W)`: luminance of three channels (ITU-R 601), the mean of any other number."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def color(x: Tensor, factor: Tensor) -> Tensor:
    return blend(grey(x), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    total = levels(grey(x)).sum((1, 2, 3), keepdim=True)
    return blend((total / x[0, 0].numel()).round() / 255, x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Against the mean of the nine pixels around, in which the middle one counts five times; the border stays."""
    if min(x.shape[-2:]) < 3:
        return x
    smooth, inside = x.clone(), x[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(x, 3, 1) + 4 * inside) / 13
    return blend(smooth, x, factor)


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to [0, 1]; one of a single colour stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-12), x).clamp(0, 1)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """The histogram of each channel made flat, by PIL's table; a channel that has none to make stays."""
    level = levels(x).flatten(2)
    counts = torch.zeros(*level.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, level, torch.ones_like(level))
    brightest = counts.gather(2, level.amax(2, keepdim=True))
    step = (level.shape[2] - brightest) // 255
    darker = counts.cumsum(2) - counts
    table = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    made = table.gather(2, level).to(x.dtype).view_as(x) / 255
    return torch.where(step.unsqueeze(3) > 0, made, x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Levels of so many leading bits, 1 to 8."""
    coarse = 2 ** (8 - bits.round().long().clamp(1, 8))
    return (levels(x) // coarse * coarse).to(x.dtype) / 255


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(x >= threshold, 1 - x, x)


def invert(x: Tensor, _: Tensor) -> Tensor:
    return 1 - x


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise around the middle."""
    sine, cosine = torch.deg2rad(degrees).sin(), torch.deg2rad(degrees).cos()
    return moved(x, lambda row, column: (row * cosine + column * sine, column * cosine - row * sine))


def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Rows slide by `slope` times their distance from the middle; those below to the left."""
    return moved(x, lambda row, column: (row, column + slope * row))


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    return moved(x, lambda row, column: (row + slope * column, column))


def translate_x(x: Tensor, share: Tensor) -> Tensor:
    """To the right by a share of the width, in whole pixels."""
    return moved(x, lambda row, column: (row, column - (share * x.shape[3]).trunc()))


def translate_y(x: Tensor, share: Tensor) -> Tensor:
    return moved(x, lambda row, column: (row - (share * x.shape[2]).trunc(), column))


def moved(x: Tensor, source: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Each pixel is the nearest one to where `source` says that it comes from, or black from outside. `source` takes
    and returns rows and columns, counted from the middle."""
    height, width = x.shape[-2:]
    down, right = (height - 1) / 2, (width - 1) / 2
    rows = torch.arange(height, device=x.device).view(1, 1, -1, 1) - down
    columns = torch.arange(width, device=x.device).view(1, 1, 1, -1) - right
    row, column = source(rows, columns)
    row, column = (row + down).round().long(), (column + right).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    found = x.flatten(2).gather(2, place.expand(len(x), x.shape[1], height, width).flatten(2)).view_as(x)
    return found * inside

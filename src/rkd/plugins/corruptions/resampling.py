"""Pixels put elsewhere: pixelation and elastic distortion.

    pixelate    the image at c times its size, each pixel the mean of what it covers, and back again by the nearest
                pixel (of two the later)      c = 0.8 0.65 0.5 0.4 0.3, sizes rounded down
    elastic     x'(p) = x(p + d(p)), linearly between pixels, beyond the edge the edge's own value
                d = two smooth random fields: uniform numbers from -1 to 1 smoothed by a Gaussian of width 0.04 times
                the image's larger side, and scaled to a root mean square of a times that side, in each image
                                              a = 0.015 0.022 0.03 0.04 0.05

The constants are rkd's own. Of those published with CIFAR-10-C (github.com/hendrycks/robustness, `make_cifar_c.py`)
a higher severity is not always farther from the image: 27 of 32 pixels are less of a change there than 28, and of the
elastic distortions the lower severities are mostly a random affine map, which moves pixels farther than the finer
distortions of the higher ones.

Where this differs from CIFAR-10-C, besides: `elastic` has no affine map; `pixelate` shares a pixel between two, where
Pillow's box filter, used there, gives it to one of them. So the numbers are rkd's own.
"""

import torch
from torch import Tensor

from rkd.plugin import Corruption, Noise, at_severity, hookimpl

from .blur import sampled, smoothed


def pixelate(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Pixelation: the image at fewer pixels than it is shown with."""
    share = at_severity((0.8, 0.65, 0.5, 0.4, 0.3), severity)
    for axis in (2, 3):
        size = x.shape[axis]
        smaller = max(1, int(share * size))
        nearest = (2 * torch.arange(size) + 1) * smaller // (2 * size)
        x = _mixed(x, axis, _shares(smaller, size)[nearest])
    return x.clamp_(0, 1)


def _shares(size: int, other: int) -> Tensor:
    """How much of each of `size` equal parts of a line lies in each of `other` equal parts, `(size, other)`."""
    ends, others = (torch.arange(count + 1, dtype=torch.float64) / count for count in (size, other))
    covered = torch.minimum(ends[1:, None], others[1:]) - torch.maximum(ends[:-1, None], others[:-1])
    return torch.where(covered > 1e-9, covered * size, 0.0)


def _mixed(x: Tensor, axis: int, shares: Tensor) -> Tensor:
    """Along an axis, pixel i as the sum of all pixels j times `shares[i, j]`, which are few and near i. Neighbour by
    neighbour: a matrix product's rounding depends on the batch."""
    size = x.shape[axis]
    here = torch.arange(size)
    result = torch.zeros_like(x)
    for step in range(1 - size, size):
        inside = (here + step >= 0) & (here + step < size)
        there = (here + step).clamp(0, size - 1)
        weights = torch.where(inside, shares[here, there], 0.0)
        if bool(weights.any()):
            weights = weights.float().to(x.device).view([-1 if place == axis else 1 for place in range(4)])
            result += weights * x.index_select(axis, there.to(x.device))
    return result


def elastic(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Elastic distortion: as if printed on rubber that is pulled here and pushed there."""
    amount = at_severity((0.015, 0.022, 0.03, 0.04, 0.05), severity)
    height, width = x.shape[2:]
    side = max(height, width)
    fields = smoothed(noise.uniform((2, height, width), -1, 1), 0.04 * side)
    size = fields.square().sum(1, keepdim=True).mean((2, 3), keepdim=True).sqrt()
    down, across = (amount * side * fields / size).unbind(1)
    row = torch.arange(height, device=x.device)[:, None]
    column = torch.arange(width, device=x.device)
    return sampled(x, row + down, column + across).clamp_(0, 1)


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {"pixelate": pixelate, "elastic": elastic}

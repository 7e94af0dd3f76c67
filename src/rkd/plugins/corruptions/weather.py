"""Weather: fog and snow.

    fog     x' = (x + a f) m / (m + a)      a = 0.2 0.5 0.75 1 1.5, m the image's largest value
            f = a random height map from 0 to 1 by the diamond-square algorithm: each new point is the mean of the four
            around it plus a uniform number from -u to u; u falls by d² from one halving of the grid to the next, with
            d = 3 3 2.5 2 1.75. The map is periodic; its side is the least power of two that covers the image.

    snow    x' = b + l + (l turned by 180°),  b = k x + (1 - k) max(x, 1.5 g + 0.5),  g the grey of x
            l = flakes: normal numbers of mean and width (0.1, 0.2) (0.1, 0.2) (0.15, 0.3) (0.25, 0.3) (0.3, 0.3),
            enlarged by 1 1 1.75 2.25 1.25, set to 0 where below t = 0.6 0.5 0.5 0.6 0.65, cut at 1, and blurred into
            streaks (see `blur`) of reach and width (8, 3) (10, 4) (10, 4) (12, 6) (14, 12), in a direction drawn for
            each image within 45° of the vertical; k = 0.95 0.9 0.9 0.85 0.8

One map, and one layer of flakes, serves all channels of an image; g is 0.299 R + 0.587 G + 0.114 B, or the mean of
another number of channels. The constants are those published with CIFAR-10-C (github.com/hendrycks/robustness,
`make_cifar_c.py`), for 32 x 32 images; here they serve any size.

Where this differs from CIFAR-10-C: the random numbers; the flakes are enlarged and streaked by linear interpolation
(there by SciPy and ImageMagick, and rounded to 8 bits in between), and of severity 3 cut at 0.5 (there 0.55, which
leaves about as many as severity 2). The files are rounded to 8 bits, these images are
not. So the numbers are rkd's own. Frost, the third kind of weather there, is made of photographs, which rkd has not.
"""

import math

import torch
from torch import Tensor

from rkd.plugin import Corruption, Noise, at_severity, hookimpl

from .blur import enlarged, streaked


def fog(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Fog: a cloudy veil, denser in some places, which dims what is behind it."""
    amount, decay = at_severity(((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)), severity)
    height, width = x.shape[2:]
    side = 1 << math.ceil(math.log2(max(height, width)))
    veil = heights(side, decay, noise)[:, None, :height, :width]
    largest = x.amax((1, 2, 3), keepdim=True)
    return ((x + amount * veil) * largest / (largest + amount)).clamp_(0, 1)


def heights(side: int, decay: float, noise: Noise) -> Tensor:
    """A periodic random landscape for each sample, `(B, side, side)` from 0 to 1, by the diamond-square algorithm.

    `side` is a power of two, at least 2. `decay`: roughness falls by its square from each grid to the next finer one.
    """
    grid = torch.zeros(len(noise.index), 1, 1, device=noise.index.device)
    rough = 1.0
    while grid.shape[1] < side:
        points = grid.shape[1]

        def around(a: Tensor, b: Tensor, points: int = points, rough: float = rough) -> Tensor:
            return (a + b) / 4 + noise.uniform((points, points), -rough, rough)

        below, right = grid.roll(-1, 1), grid.roll(-1, 2)
        centre = around(grid + right, below + below.roll(-1, 2))
        # The middle of an edge has its two ends and the centres of the two squares that share it.
        top = around(grid + right, centre + centre.roll(1, 1))
        left = around(grid + below, centre + centre.roll(1, 2))
        grid = torch.stack([torch.stack([grid, top], 3).flatten(2), torch.stack([left, centre], 3).flatten(2)], 2)
        grid = grid.flatten(1, 2)
        rough /= decay**2
    low, high = grid.amin((1, 2), keepdim=True), grid.amax((1, 2), keepdim=True)
    return (grid - low) / (high - low)


def snow(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Snow: streaks of flakes before a scene that is paler for it."""
    mean, spread, zoom, least, reach, width, kept = at_severity(
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.5, 10, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ),
        severity,
    )
    flakes = enlarged(mean + spread * noise.normal((1, *x.shape[2:])), zoom)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp_(0, 1)
    flakes = streaked(flakes, reach, width, noise.uniform((1, 1), math.pi / 4, 3 * math.pi / 4))
    pale = kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey(x) + 0.5)
    return (pale + flakes + flakes.flip(2, 3)).clamp_(0, 1)


def grey(x: Tensor) -> Tensor:
    """The brightness of images `(B, C, H, W)`, `(B, 1, H, W)`: of three channels that of red, green and blue."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    shares = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)
    return (x * shares).sum(1, keepdim=True)


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {"fog": fog, "snow": snow}

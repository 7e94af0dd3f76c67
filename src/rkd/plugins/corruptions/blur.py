"""Blur of lenses and movement: Gaussian, defocus and motion blur, each channel by itself.

    x'(p) = sum_q k(q) x(p + q),    sum_q k(q) = 1,    q in pixels; beyond the edge the edge's own value

    gaussian-blur   k(q) ~ exp(-|q|² / 2 s²)                          s = 0.4 0.6 0.7 0.8 1.0
    defocus-blur    k = the disc |q| <= r, smoothed by a 3 x 3 Gaussian of width a
                                              (r, a) = (0.3, 0.4) (0.4, 0.5) (0.5, 0.6) (1, 0.2) (1.5, 0.1)
    motion-blur     k(t d) ~ exp(-t² / 2 s²), t = 0, 1, ..., r along a direction d, which is drawn for each image
                    within 45° of the horizontal      (r, s) = (6, 1) (6, 1.5) (6, 2) (8, 2) (9, 2.5)

The constants are those published with CIFAR-10-C (github.com/hendrycks/robustness, `make_cifar_c.py`): pixels of
32 x 32 images. On larger images the same numbers blur less, on smaller ones more.

Where this differs from CIFAR-10-C: defocus blur mirrors the image at its edges there (OpenCV's filter), motion blur
has ImageMagick's choice of places between pixels, which are interpolated linearly here, and the files are rounded to
8 bits. So the numbers are rkd's own.

Every sum runs tap by tap over shifted images instead of a convolution: a convolution's rounding depends on the batch
size, and one image's result must not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rkd.core.corruption import at_severity
from rkd.core.hookspecs import hookimpl
from rkd.core.interfaces import Corruption
from rkd.core.random import Noise


def gaussian_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Gaussian blur."""
    width = at_severity((0.4, 0.6, 0.7, 0.8, 1.0), severity)
    taps = torch.tensor(_gaussian(width, math.ceil(4 * width)))
    return _filtered(_filtered(x, taps[None]), taps[:, None])


def defocus_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Defocus blur: each point becomes a disc."""
    radius, smoothing = at_severity(((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)), severity)
    return _filtered(x, _disc(radius, smoothing))


def motion_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Motion blur: each point becomes a fading streak, in a direction of the image's own."""
    reach, width = at_severity(((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)), severity)
    weights = _gaussian(width, reach)[reach:]
    angle = noise.uniform((1, 1), -math.pi / 4, math.pi / 4)
    height, breadth = x.shape[2:]
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    column = torch.arange(breadth, device=x.device, dtype=x.dtype)[None]
    blurred = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        # grid_sample counts from -1, the centre of the first pixel, to 1, that of the last.
        across = 2 * (column + step * angle.cos()) / (breadth - 1) - 1
        down = 2 * (row + step * angle.sin()) / (height - 1) - 1
        places = torch.stack([across.expand(-1, height, -1), down.expand(-1, -1, breadth)], dim=-1)
        blurred += weight / sum(weights) * F.grid_sample(x, places, padding_mode="border", align_corners=True)
    return blurred.clamp_(0, 1)


def _gaussian(width: float, reach: int) -> Sequence[float]:
    """The weights at -reach ... reach, of sum 1."""
    weights = [math.exp(-place * place / (2 * width * width)) for place in range(-reach, reach + 1)]
    return [weight / sum(weights) for weight in weights]


def _disc(radius: float, smoothing: float) -> Tensor:
    """The kernel `(2R + 1, 2R + 1)` of a disc with a soft edge."""
    reach = int(radius) + 1
    place = torch.arange(-reach, reach + 1)
    disc = ((place[:, None] ** 2 + place**2) <= radius * radius).float()
    edge = torch.tensor(_gaussian(smoothing, 1))
    kernel = F.conv2d(disc[None, None], (edge[:, None] * edge)[None, None], padding=1)[0, 0]
    return kernel / kernel.sum()


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """`x (B, C, H, W)` under a kernel with an odd number of rows and columns."""
    down, across = (size // 2 for size in kernel.shape)
    height, width = x.shape[2:]
    padded = F.pad(x, (across, across, down, down), mode="replicate")
    result = torch.zeros_like(x)
    for row, weights in enumerate(kernel.tolist()):
        for column, weight in enumerate(weights):
            if weight:
                result.add_(padded[:, :, row : row + height, column : column + width], alpha=weight)
    return result.clamp_(0, 1)


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {"gaussian-blur": gaussian_blur, "defocus-blur": defocus_blur, "motion-blur": motion_blur}

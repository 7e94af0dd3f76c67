"""Blur of lenses and movement: Gaussian, defocus, motion, zoom and glass blur, each channel by itself.

    x'(p) = sum_q k(q) x(p + q),    sum_q k(q) = 1,    q in pixels; beyond the edge the edge's own value

    gaussian-blur   k(q) ~ exp(-|q|² / 2 s²)                          s = 0.4 0.6 0.7 0.8 1.0
    defocus-blur    k = the disc |q| <= r, smoothed by a 3 x 3 Gaussian of width a
                                              (r, a) = (0.3, 0.4) (0.4, 0.5) (0.5, 0.6) (1, 0.2) (1.5, 0.1)
    motion-blur     k(t d) ~ exp(-t² / 2 s²), t = 0, 1, ..., r along a direction d, which is drawn for each image
                    within 45° of the horizontal      (r, s) = (6, 1) (6, 1.5) (6, 2) (8, 2) (9, 2.5)
    zoom-blur       x' = (2 x + z_1 + ... + z_n) / (n + 2), z_k the image enlarged around its middle by 1 + k / 100
                                              n = 5 10 15 20 25
    glass-blur      x'(p) = x(p + d(p)) between two Gaussian blurs of width 0.4, d two normal numbers of width s,
                    drawn for each pixel and rounded          s = 0.4 0.5 0.6 0.8 1.0

The constants, but for those of glass blur, are those published with CIFAR-10-C (github.com/hendrycks/robustness,
`make_cifar_c.py`): pixels of 32 x 32 images. On larger images the same numbers blur less, on smaller ones more.

Where this differs from CIFAR-10-C: defocus blur mirrors the image at its edges there (OpenCV's filter), motion blur
has ImageMagick's choice of places between pixels, which are interpolated linearly here, zoom blur enlarges a middle
part of whole pixels (so that of 32 x 32 pixels some zooms are the same), and the files are rounded to 8 bits. Glass
blur there mixes pixels with their upper left neighbours, with constants by which a higher severity is not always
farther from the image; here the way is a Gaussian, the same in all directions. So the numbers are rkd's own.

Every sum runs tap by tap over shifted images instead of a convolution: a convolution's rounding depends on the batch
size, and one image's result must not.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rkd.plugin import Corruption, Noise, at_severity, hookimpl


def gaussian_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Gaussian blur."""
    return smoothed(x, at_severity((0.4, 0.6, 0.7, 0.8, 1.0), severity)).clamp_(0, 1)


def defocus_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Defocus blur: each point becomes a disc."""
    radius, smoothing = at_severity(((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)), severity)
    return _filtered(x, _disc(radius, smoothing)).clamp_(0, 1)


def motion_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Motion blur: each point becomes a fading streak, in a direction of the image's own."""
    reach, width = at_severity(((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)), severity)
    angle = noise.uniform((1, 1), -math.pi / 4, math.pi / 4)
    return streaked(x, reach, width, angle).clamp_(0, 1)


def zoom_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Zoom blur: as of a camera that moves towards the scene."""
    zooms = at_severity((5, 10, 15, 20, 25), severity)
    blurred = 2 * x
    for step in range(1, zooms + 1):
        blurred += enlarged(x, 1 + step / 100)
    return blurred.div_(zooms + 2).clamp_(0, 1)


def glass_blur(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Glass blur: behind a frosted pane, pixels stand a little beside their place."""
    spread = at_severity((0.4, 0.5, 0.6, 0.8, 1.0), severity)
    height, breadth = x.shape[2:]
    down, across = (spread * noise.normal((2, height, breadth))).round().long().unbind(1)
    row = (torch.arange(height, device=x.device)[:, None] + down).clamp(0, height - 1)
    column = (torch.arange(breadth, device=x.device) + across).clamp(0, breadth - 1)
    places = (row * breadth + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    moved = smoothed(x, 0.4).flatten(2).gather(2, places).reshape(x.shape)
    return smoothed(moved, 0.4).clamp_(0, 1)


def smoothed(x: Tensor, width: float) -> Tensor:
    """`x (B, C, H, W)` under a Gaussian of that width, in pixels."""
    taps = torch.tensor(_gaussian(width, math.ceil(4 * width)))
    return _filtered(_filtered(x, taps[None]), taps[:, None])


def streaked(x: Tensor, reach: int, width: float, angle: Tensor) -> Tensor:
    """Each point of `x (B, C, H, W)` as a streak of `reach` pixels that fades like a Gaussian of that width, in a
    direction of its image's own, `angle (B, 1, 1)` from the horizontal, downwards."""
    weights = _gaussian(width, reach)[reach:]
    height, breadth = x.shape[2:]
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    column = torch.arange(breadth, device=x.device, dtype=x.dtype)[None]
    blurred = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        blurred += weight / sum(weights) * sampled(x, row + step * angle.sin(), column + step * angle.cos())
    return blurred


def enlarged(x: Tensor, factor: float) -> Tensor:
    """`x (B, C, H, W)` enlarged around its middle, at the same size."""
    middle_row, middle_column = ((size - 1) / 2 for size in x.shape[2:])
    row = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)[None, :, None]
    column = torch.arange(x.shape[3], device=x.device, dtype=x.dtype)[None, None]
    return sampled(x, middle_row + (row - middle_row) / factor, middle_column + (column - middle_column) / factor)


def sampled(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`x (B, C, H, W)` at places between its pixels, linearly; beyond the edge the edge's own value. `row` and
    `column`, in pixels, broadcast to `(B, H, W)`."""
    count, _, height, breadth = x.shape
    # grid_sample counts from -1, the centre of the first pixel, to 1, that of the last.
    across = (2 * column / (breadth - 1) - 1).expand(count, height, breadth)
    down = (2 * row / (height - 1) - 1).expand(count, height, breadth)
    return F.grid_sample(x, torch.stack([across, down], dim=-1), padding_mode="border", align_corners=True)


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
    return result


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {
        "gaussian-blur": gaussian_blur,
        "defocus-blur": defocus_blur,
        "motion-blur": motion_blur,
        "zoom-blur": zoom_blur,
        "glass-blur": glass_blur,
    }

"""Noise of cameras and wires: Gaussian, shot, impulse and speckle noise, each value of each pixel by itself.

With n standard normal, s the severity's constant, and everything clamped to [0, 1]:

    gaussian-noise   x + s n                      s = 0.04 0.06 0.08 0.09 0.10
    shot-noise       x + sqrt(x / s) n            s = 500 250 100 75 50, photons of a white pixel
    impulse-noise    0 or 1 with chance s / 2 each, else x      s = 0.01 0.02 0.03 0.05 0.07
    speckle-noise    x + s x n                    s = 0.06 0.10 0.12 0.16 0.20

The constants are those published with CIFAR-10-C (github.com/hendrycks/robustness, `make_cifar_c.py`), made for
32 x 32 images; here they serve any size.

Where this differs from CIFAR-10-C: shot noise there is Poisson; here it is the normal distribution of the same mean
and variance, which is another one where there are few photons (black stays black in both). The files are rounded to
8 bits, these images are not. So the numbers are rkd's own.
"""

import torch
from torch import Tensor

from rkd.plugin import Corruption, Noise, at_severity, hookimpl


def gaussian_noise(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Gaussian noise, as of a sensor in poor light."""
    scale = at_severity((0.04, 0.06, 0.08, 0.09, 0.10), severity)
    return (x + scale * noise.normal(x.shape[1:])).clamp_(0, 1)


def shot_noise(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Shot noise: light comes in photons, and their number varies."""
    photons = at_severity((500, 250, 100, 75, 50), severity)
    return (x + (x / photons).sqrt() * noise.normal(x.shape[1:])).clamp_(0, 1)


def impulse_noise(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Impulse noise: salt and pepper, as of bit errors."""
    share = at_severity((0.01, 0.02, 0.03, 0.05, 0.07), severity)
    drawn = noise.uniform(x.shape[1:])
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn >= 1 - share / 2, 1.0, x))


def speckle_noise(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Speckle noise: the brighter a pixel, the more of it."""
    scale = at_severity((0.06, 0.10, 0.12, 0.16, 0.20), severity)
    return (x + scale * x * noise.normal(x.shape[1:])).clamp_(0, 1)


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {
        "gaussian-noise": gaussian_noise,
        "shot-noise": shot_noise,
        "impulse-noise": impulse_noise,
        "speckle-noise": speckle_noise,
    }

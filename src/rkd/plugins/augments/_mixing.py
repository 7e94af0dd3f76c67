"""What mixup and CutMix share: partners, shares and soft labels. No hooks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rkd.plugin import ConfigError, Noise


def symmetric_beta(alpha: float, u: Tensor, v: Tensor) -> Tensor:
    """Beta(alpha, alpha) of uniform numbers in [0, 1), all `(B,)`, by Bailey's polar method for Student's t:
    1/2 + c / (2 sqrt(c^2 + 1/w)) with w = u^(-1/alpha) - 1 and c = cos(2 pi v)."""
    w = torch.expm1(-torch.log1p(-u) / alpha)  # 0 to infinity, both sound below: 1/2, and 0 or 1
    c = torch.cos(2 * math.pi * v)
    return (0.5 + 0.5 * c / (c.square() + 1 / w).sqrt()).clamp(0, 1)  # rounding may go a last digit beyond


def partners(noise: Noise) -> Tensor:
    """Another sample for each, `(B,)`: one random ring through the batch, so that nobody is its own partner."""
    ring = noise.uniform(()).argsort(stable=True)
    return torch.empty_like(ring).scatter(0, ring, ring.roll(-1))


def check_mixing(name: str, alpha: float, classes: int | None) -> None:
    """Raise ConfigError for options that make no sense."""
    if not alpha > 0:
        raise ConfigError(f"{name}: alpha must be above 0, got {alpha}")
    if classes is not None and not 1 <= classes <= 100_000:
        raise ConfigError(f"{name}: classes must be from 1 to 100,000, got {classes}")


def probabilities(name: str, y: Tensor, classes: int | None) -> Tensor:
    """`(B, K)` float32 of labels `(B,)`, or as they are."""
    if y.ndim == 2:
        return y.float()
    if classes is None:
        raise ConfigError(f"{name}: give the number of classes, e.g. --set augments.{name}.classes=10")
    # On a GPU the host would wait for the largest label; there, `one_hot` fails on the device.
    if y.device.type == "cpu" and len(y) and int(y.max()) >= classes:
        raise ConfigError(f"{name}: classes is {classes}, but the batch holds a label {int(y.max())}")
    return F.one_hot(y, classes).float()

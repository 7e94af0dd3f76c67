"""mixup: each image and its label become a blend with another image of the batch.

    x' = lam x + (1 - lam) x_partner,   y' = lam y + (1 - lam) y_partner,   lam ~ Beta(alpha, alpha)

Labels become probabilities `(B, K)`, so methods that need class numbers refuse them. The partners form one random ring
through the batch: nobody is blended with itself.

Deviations from the official script (`facebookresearch/mixup-cifar10`, `train.py`): it draws one lam per batch, where
the paper's formula is per pair, and that is done here; its partners are a random permutation, which may leave an
image alone. The symmetric beta distribution follows from two uniform numbers u, v by Bailey's polar method for
Student's t: lam = 1/2 + c / (2 sqrt(c^2 + 1/w)) with w = u^(-1/alpha) - 1 and c = cos(2 pi v).

References: zhang2018mixup, bailey1994polar
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rkd.plugin import Batch, ConfigError, Noise, hookimpl


def symmetric_beta(alpha: float, u: Tensor, v: Tensor) -> Tensor:
    """Beta(alpha, alpha) of uniform numbers in [0, 1), all `(B,)`."""
    w = torch.expm1(-torch.log1p(-u) / alpha)  # 0 to infinity, both sound below: lam = 1/2, and 0 or 1
    c = torch.cos(2 * math.pi * v)
    return (0.5 + 0.5 * c / (c.square() + 1 / w).sqrt()).clamp(0, 1)  # rounding may go a last digit beyond


@dataclass
class Mixup:
    """Blend each image and its label with those of another; makes soft labels.

    Changes `x` and `y` alone. Further views stay what their makers made of them, unblended: they would no longer fit
    the labels, so no augmentation that makes views should stand beside this one.

    alpha: of Beta(alpha, alpha); small values blend little, 1 is uniform.
    classes: how many there are; a batch of plain labels does not say.
    """

    alpha: float = 1.0
    classes: int | None = None

    mixes: ClassVar = True

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"mixup: alpha must be above 0, got {self.alpha}")
        if self.classes is not None and not 1 <= self.classes <= 100_000:
            raise ConfigError(f"mixup: classes must be from 1 to 100,000, got {self.classes}")

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        y = self._probabilities(batch.y).to(batch.x.dtype)
        ring = noise.uniform(()).argsort(stable=True)
        partner = torch.empty_like(ring).scatter(0, ring, ring.roll(-1))
        draws = noise.uniform((2,))
        lam = symmetric_beta(self.alpha, draws[:, 0], draws[:, 1])
        by_image, by_label = lam[:, None, None, None], lam[:, None]
        x = by_image * batch.x + (1 - by_image) * batch.x[partner]
        return replace(batch, x=x.clamp(0, 1), y=by_label * y + (1 - by_label) * y[partner])

    def _probabilities(self, y: Tensor) -> Tensor:
        """`(B, K)` of labels `(B,)`, or as they are."""
        if y.ndim == 2:
            return y
        if self.classes is None:
            raise ConfigError("mixup: give the number of classes, e.g. --set augments.mixup.classes=10")
        # On a GPU the host would wait for the largest label; there, `one_hot` fails on the device.
        if y.device.type == "cpu" and len(y) and int(y.max()) >= self.classes:
            raise ConfigError(f"mixup: classes is {self.classes}, but the batch holds a label {int(y.max())}")
        return F.one_hot(y, self.classes)


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"mixup": Mixup}

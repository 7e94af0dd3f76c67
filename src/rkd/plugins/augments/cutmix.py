"""CutMix: a box of each image is replaced by the same box of another image of the batch, and the label by its share.

    x' = x outside the box, x_partner inside,   y' = lam y + (1 - lam) y_partner,   1 - lam = the box's share of pixels

The box covers a share 1 - l of the image, l ~ Beta(alpha, alpha), in the image's proportions; its centre is uniform
over the pixels, and what reaches over the edge is cut off, so that lam follows from the pixels that are left.

Deviations from the official script (`clovaai/CutMix-PyTorch`, `train.py`): it draws one box per batch and cuts with
probability 0.5 or 1 (`p` here, for each image); its partners are a random permutation, here one random ring through
the batch, so that nobody is its own partner.

Rebuffi et al. (2021) found that CutMix helps adversarial training if weights are averaged, and else does not.

References: yun2019cutmix, rebuffi2021data, bailey1994polar
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import Batch, ConfigError, Noise, hookimpl

from ._mixing import check_mixing, partners, probabilities, symmetric_beta


@dataclass
class CutMix:
    """Replace a box of each image by another image's, and its label by the share of pixels; makes soft labels.

    Changes `x` and `y` alone. No augmentation that makes views should stand beside this one: they would no longer fit
    the labels.

    alpha: of Beta(alpha, alpha), the share of the image that stays; 1 is uniform.
    p: the probability, for each image.
    classes: how many there are; a batch of plain labels does not say.
    """

    alpha: float = 1.0
    p: float = 1.0
    classes: int | None = None

    mixes: ClassVar = True

    def __post_init__(self) -> None:
        check_mixing("cutmix", self.alpha, self.classes)
        if not 0 <= self.p <= 1:
            raise ConfigError(f"cutmix: p must be a probability from 0 to 1, got {self.p}")

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        y = probabilities("cutmix", batch.y, self.classes)
        partner = partners(noise)
        draws = noise.uniform((5,))
        side = (1 - symmetric_beta(self.alpha, draws[:, 0], draws[:, 1])).sqrt() * (draws[:, 4] < self.p)
        rows = _span(side, draws[:, 2], batch.x.shape[2])[:, None, :, None]
        columns = _span(side, draws[:, 3], batch.x.shape[3])[:, None, None, :]
        box = rows & columns
        kept = 1 - box.sum((1, 2, 3)).unsqueeze(1) / box[0].numel()
        x = torch.where(box, batch.x[partner], batch.x)
        return replace(batch, x=x, y=kept * y + (1 - kept) * y[partner])


def _span(share: Tensor, centre: Tensor, length: int) -> Tensor:
    """`(B, length)`: true for the pixels that a box of this share of the length covers, `(share * length) // 2` before
    and behind its centre."""
    half = (share * length).long().div(2, rounding_mode="floor").unsqueeze(1)
    middle = (centre * length).long().clamp(max=length - 1).unsqueeze(1)
    pixel = torch.arange(length, device=share.device)
    return (pixel >= middle - half) & (pixel < middle + half)


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"cutmix": CutMix}

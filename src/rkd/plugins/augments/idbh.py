"""IDBH: the augmentations that keep adversarial training from overfitting: flip, CropShift, one change of colour or
shape, random erasing.

    weak     flip, CropShift 0..10, colour, random erasing with probability 0.5
    strong   flip, CropShift 0..10, colour, random erasing always                              (both for CIFAR-10)
    svhn     flip, CropShift 0..8,  shape,  random erasing always, of 2 to 50 % of the image

One change is drawn for each image: of colour each of eight with the same probability, of shape shear and rotation with
0.3 each. The paper trains PreActResNet-18 with `weak`.

The authors' code works on 8-bit PIL images and rounds after each step; here images are not rounded (see
`_operations`), and shears and rotations take the nearest pixel as there. Beside `idbh` no `crop` or `flip` is needed:
`--set augments.crop=false --set augments.flip=false`. Over a training, flip and CropShift first and IDBH then:
`augments.cropshift.until`, `augments.flip.until` and `augments.idbh.since`, each 0.5.

References: li2023data
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rkd.plugin import Batch, Noise, hookimpl

from . import _operations as operations
from .cropshift import CropShift
from .flip import Flip
from .random_erasing import RandomErasing

CHANGES = {
    # name: (operation, probability among colours, among shapes)
    "color": (operations.color, 0.125, 0.08),
    "brightness": (operations.brightness, 0.125, 0.08),
    "contrast": (operations.contrast, 0.125, 0.04),
    "sharpness": (operations.sharpness, 0.125, 0.08),
    "autocontrast": (operations.autocontrast, 0.125, 0.04),
    "equalize": (operations.equalize, 0.125, 0.08),
    "shear_x": (operations.shear_x, 0.0625, 0.15),
    "shear_y": (operations.shear_y, 0.0625, 0.15),
    "rotate": (operations.rotate, 0.125, 0.3),
}


@dataclass
class Idbh:
    """Flip, CropShift, one change of colour or shape, random erasing (Li and Spratling, 2023).

    Changes `x` alone; further views stay what their makers made of them.

    version: weak or strong for CIFAR-10, svhn for SVHN.
    since, until: the part of the training during which it acts.
    """

    version: Literal["weak", "strong", "svhn"] = "weak"
    since: float = 0.0
    until: float = 1.0

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        svhn = self.version == "svhn"
        batch = CropShift(high=8 if svhn else 10)(Flip()(batch, noise), noise)
        batch = replace(batch, x=self._changed(batch.x, noise))
        p, most = 0.5 if self.version == "weak" else 1.0, 0.5 if svhn else 0.33
        return RandomErasing(p, (0.02, most))(batch, noise)

    def _changed(self, x: Tensor, noise: Noise) -> Tensor:
        shape = self.version == "svhn"
        draws = noise.uniform((3,))
        share, sign = draws[:, 1], torch.where(draws[:, 2] < 0.5, -1, 1)
        slope = sign * torch.tan(0.05 + (0.3 if shape else 0.1) * share)
        degrees = sign * (1 + (share * (30 if shape else 10)).floor())
        wide, narrow = 0.1 + 1.8 * share, 0.5 + 1.4 * share
        strengths = {
            **dict.fromkeys(("color", "sharpness"), wide),
            **dict.fromkeys(("brightness", "contrast"), narrow),
            **dict.fromkeys(("shear_x", "shear_y"), slope),
            "rotate": degrees,
        }
        chosen, strength, below = torch.full_like(share, -1).long(), torch.zeros_like(share), 0.0
        for place, (name, (_, *probabilities)) in enumerate(CHANGES.items()):
            mine = (draws[:, 0] >= below) & (draws[:, 0] < (below := below + probabilities[shape]))
            chosen = torch.where(mine, place, chosen)
            strength = torch.where(mine, strengths.get(name, strength), strength)
        return operations.apply(x, {name: change[0] for name, change in CHANGES.items()}, chosen, strength)


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"idbh": Idbh}

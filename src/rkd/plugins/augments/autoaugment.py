"""AutoAugment: one of 25 learned pairs of operations for each image.

Each operation of the pair happens with its own probability, at one of ten magnitudes, and where it has a sign with a
random one. The policies are those that were found on CIFAR-10, ImageNet and SVHN, as torchvision's `AutoAugment` holds
them, with its ranges of magnitudes.

torchvision works on 8-bit images and rounds after each operation; here images are not rounded (see `_operations`).
What moves into the image is black, as there.

With `view = "augmented"` the batch's images stay, and the changed ones are a further view of that name, for losses
that look at both: fine-grained AdvProp (`--loss advprop --set 'loss.views=["augmented", "adv"]'`).

References: cubuk2019autoaugment, torchvision2016
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from rkd.plugin import Batch, ConfigError, Noise, View, hookimpl

from . import _operations as operations


def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """The upper left corner stays, where IDBH's shears hold the middle."""
    return operations.moved(x, lambda row, column: (row, column + slope * (row + x.shape[2] / 2)))


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    return operations.moved(x, lambda row, column: (row + slope * (column + x.shape[3] / 2), column))


OPERATIONS: Mapping[str, tuple[operations.Operation, float, float, bool]] = {
    # torchvision's name: operation, strength at the least magnitude, change at the largest, whether that has a sign
    "ShearX": (shear_x, 0, 0.3, True),
    "ShearY": (shear_y, 0, 0.3, True),
    "TranslateX": (operations.translate_x, 0, 150 / 331, True),
    "TranslateY": (operations.translate_y, 0, 150 / 331, True),
    "Rotate": (operations.rotate, 0, 30, True),
    "Brightness": (operations.brightness, 1, 0.9, True),
    "Color": (operations.color, 1, 0.9, True),
    "Contrast": (operations.contrast, 1, 0.9, True),
    "Sharpness": (operations.sharpness, 1, 0.9, True),
    "Posterize": (operations.posterize, 8, -4, False),
    "Solarize": (operations.solarize, 1, -1, False),
    "AutoContrast": (operations.autocontrast, 0, 0, False),
    "Equalize": (operations.equalize, 0, 0, False),
    "Invert": (operations.invert, 0, 0, False),
}
_OPERATIONS = {name: operation for name, (operation, *_) in OPERATIONS.items()}


@dataclass
class AutoAugment:
    """One of 25 learned pairs of changes of colour and shape for each image (Cubuk et al., 2019).

    Changes `x` alone, or makes a further view of it.

    policy: the data on which the pairs were found.
    view: the name of a further view that it makes, instead of changing the batch's images.
    """

    policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"
    view: View | None = None

    _table: Tensor = field(init=False, repr=False, compare=False)
    """`(25, 2, 5)`: place in OPERATIONS, probability, strength without sign, signed change, whether it has a sign."""

    def __post_init__(self) -> None:
        if self.view in ("", "clean"):
            raise ConfigError(f"autoaugment: view is the name of a further view, got {self.view!r}")
        from torchvision import transforms  # here: torchvision takes a second to import

        rows = []
        for pair in transforms.AutoAugment(transforms.AutoAugmentPolicy(self.policy)).policies:
            for name, probability, magnitude in pair:
                _, base, change, signed = OPERATIONS[name]
                rows.append([list(OPERATIONS).index(name), probability, base, change * (magnitude or 0) / 9, signed])
        self._table = torch.tensor(rows).view(-1, 2, 5)

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        table, draws, x = self._table.to(batch.x.device, non_blocking=True), noise.uniform((5,)), batch.x
        pairs = table[(draws[:, 0] * len(table)).long().clamp(max=len(table) - 1)]
        for turn in (0, 1):
            place, probability, base, change, signed = pairs[:, turn].unbind(1)
            happens, minus = draws[:, 1 + turn] < probability, (draws[:, 3 + turn] < 0.5) & (signed > 0)
            chosen = torch.where(happens, place, -1).long()
            x = operations.apply(x, _OPERATIONS, chosen, base + torch.where(minus, -change, change))
        return replace(batch, x=x) if self.view is None else replace(batch, views={**batch.views, self.view: x})


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"autoaugment": AutoAugment}

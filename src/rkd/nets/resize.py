"""Resizing of images before a net that takes no images of their size."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Resize:
    """Bilinear resizing of images `(B, C, H, W)` to `(B, C, *size)`, as a hook before a net's forward.

    A hook and not a module around the net, since every parameter then keeps the name of its library. What it makes of
    images follows from them alone, so that copies of the net can do the same.
    """

    size: tuple[int, int]
    antialias: bool

    def __call__(self, net: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        return (self.images(x),)

    def images(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=self.antialias)

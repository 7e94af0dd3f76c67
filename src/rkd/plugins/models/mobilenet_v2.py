"""MobileNetV2 for small images: the second student of ARD, RSLAD, MTARD and most papers on CIFAR.

Against torchvision's MobileNetV2: strides 1 instead of 2 in the stem and in the second stage, so that a 32x32
image has 4x4 positions at the end; ReLU instead of ReLU6; no dropout; and a block of stride 1 that changes
the number of planes has a shortcut convolution, where the paper's has none. All that is
kuangliu/pytorch-cifar's, with its parameter names (`conv1`, `layers.1.conv1`, `layers.0.shortcut.0`, `conv2`,
`bn2`, `linear`), which the scripts of ARD, RSLAD and MTARD share. Any image size works: the last pooling is
global.

References: sandler2018mobilenetv2
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rkd.plugin import ConfigError, Shape, hookimpl

STAGES = (
    # expansion, planes, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1, 3x3 per plane, linear 1x1: `(B, inputs, H, W)` to `(B, planes, H / stride, W / stride)`."""

    def __init__(self, inputs: int, planes: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.residual and inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.residual else out


class MobileNetV2(nn.Module):
    """Seven stages; all numbers of planes are multiplied by `width`."""

    def __init__(self, channels: int, classes: int, width: float) -> None:
        super().__init__()

        def planes(count: int) -> int:
            return max(1, round(width * count))

        inputs = planes(32)
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        layers = []
        for expansion, count, blocks, stride in STAGES:
            for place in range(blocks):
                layers.append(InvertedResidual(inputs, planes(count), expansion, 1 if place else stride))
                inputs = planes(count)
        self.layers = nn.Sequential(*layers)
        # The paper narrows all but the last convolution: better for small nets.
        last = max(1280, planes(1280))
        self.conv2 = nn.Conv2d(inputs, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(out.mean((2, 3)))


@dataclass
class MobileNetV2Small:
    """MobileNetV2 for small images (2.3 M parameters); width multiplies all planes."""

    width: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.width < 100:
            raise ConfigError(f"width = {self.width:g}: a factor above 0, such as 0.5 to halve the planes")

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return MobileNetV2(shape[0], classes, self.width)


@hookimpl
def rkd_models():
    return {"mobilenetv2": MobileNetV2Small}

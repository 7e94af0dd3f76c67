"""ResNet-18, -34, -50, -101 and -152 for small images: the students of most papers on CIFAR.

Against torchvision's ResNets the stem is a 3x3 convolution of stride 1 without max-pooling, so that a 32x32
image still has 4x4 positions at the end (an 8x8 image has 1). Any image size works: the last pooling is
global.

Parameter names are those of kuangliu/pytorch-cifar (`conv1`, `layer1.0.bn1`, `layer2.0.shortcut.0`,
`linear`), which the scripts of TRADES, ARD, RSLAD, MTARD, IAD, AdaAD and RobustBench's `ResNet18` share:
their checkpoints load as they are. Those nets normalise outside or not at all (TRADES' and RSLAD's take plain
[0, 1] images).

References: he2016deep
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rkd.plugin import ConfigError, Shape, hookimpl


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The way around a block: nothing, or a 1x1 convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: `(B, inputs, H, W)` to `(B, planes, H / stride, W / stride)`."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: `(B, inputs, H, W)` to `(B, 4 * planes, H / stride, W / stride)`."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = shortcut(inputs, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Four stages of `blocks` residual blocks with `width`, 2, 4 and 8 times `width` planes."""

    def __init__(self, block: Block, blocks: Sequence[int], channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        e = block.expansion
        self.layer1 = self._stage(block, blocks[0], width, width, 1)
        self.layer2 = self._stage(block, blocks[1], width * e, 2 * width, 2)
        self.layer3 = self._stage(block, blocks[2], 2 * width * e, 4 * width, 2)
        self.layer4 = self._stage(block, blocks[3], 4 * width * e, 8 * width, 2)
        self.linear = nn.Linear(8 * width * e, classes)

    @staticmethod
    def _stage(block: Block, blocks: int, inputs: int, planes: int, stride: int) -> nn.Sequential:
        rest = (block(planes * block.expansion, planes, 1) for _ in range(blocks - 1))
        return nn.Sequential(block(inputs, planes, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))


@dataclass
class ResNet18:
    """ResNet-18 for small images (11.2 M parameters), the usual student."""

    width: int = 64

    block: ClassVar[Block] = BasicBlock
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 4096:
            raise ConfigError(f"width = {self.width}: a ResNet needs 1 to 4096 planes (64 in the papers)")

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return ResNet(self.block, self.blocks, shape[0], classes, self.width)


class ResNet34(ResNet18):
    """ResNet-34 for small images (21.3 M parameters)."""

    blocks = (3, 4, 6, 3)


class ResNet50(ResNet18):
    """ResNet-50 for small images (23.5 M parameters)."""

    block, blocks = Bottleneck, (3, 4, 6, 3)


class ResNet101(ResNet18):
    """ResNet-101 for small images (42.5 M parameters)."""

    block, blocks = Bottleneck, (3, 4, 23, 3)


class ResNet152(ResNet18):
    """ResNet-152 for small images (58.2 M parameters)."""

    block, blocks = Bottleneck, (3, 8, 36, 3)


@hookimpl
def rkd_models():
    return {
        "resnet18": ResNet18,
        "resnet34": ResNet34,
        "resnet50": ResNet50,
        "resnet101": ResNet101,
        "resnet152": ResNet152,
    }

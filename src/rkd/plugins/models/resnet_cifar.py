"""He's ResNets for CIFAR with 16, 32 and 64 planes, depth 6n + 2: MTARD's clean teacher is the ResNet-56.

Where the shape changes, shortcut A of the paper's CIFAR experiments is free of parameters: it takes every
second pixel and fills the new planes with zeros, half of them before and half behind. Shortcut B is a 1x1
convolution with batch norm. torchvision has no such nets. Any image size works: the last pooling is global.

Two families of public checkpoints, told apart by shortcut and names:

- akamaster/pytorch_resnet_cifar10 (A): `conv1`, `layer1.0.conv1`, `linear`. The names used here.
- chenyaofo/pytorch-cifar-models (B), from which MTARD has its clean ResNet-56: `fc` and `downsample` for what
  is called `linear` and `shortcut` here (`renamed_keys`). The model is `resnet56-B`.

References: he2016deep
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rkd.plugin import ConfigError, Family, Shape, hookimpl

from .wide_resnet import depth_problems


class PadShortcut(nn.Module):
    """Option A: `(B, C, H, W)` to `(B, C + 2 * pad, ceil(H / 2), ceil(W / 2))`."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        # Pooling of single pixels takes every second one; unlike slices it keeps the gradient's layout in memory.
        return F.pad(F.avg_pool2d(x, 1, 2), (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: `(B, inputs, H, W)` to `(B, planes, H / stride, W / stride)`."""

    def __init__(self, inputs: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module
        if stride == 1:
            self.shortcut = nn.Sequential()
        elif shortcut == "A":
            self.shortcut = PadShortcut((planes - inputs) // 2)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of `blocks` residual blocks with `width`, 2 and 4 times `width` planes."""

    renamed_keys: ClassVar[dict[str, str]] = {"fc.": "linear.", "downsample.": "shortcut."}
    """Parts of keys in public checkpoints -> what they are called here."""

    def __init__(self, blocks: int, channels: int, classes: int, width: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1, shortcut)
        self.layer2 = self._stage(blocks, width, 2 * width, 2, shortcut)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2, shortcut)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, inputs: int, planes: int, stride: int, shortcut: str) -> nn.Sequential:
        first = BasicBlock(inputs, planes, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(planes, planes, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


@dataclass
class AnyDepth:
    """ResNet for CIFAR of depth 6n + 2 with shortcut A or B, such as resnet56-B (MTARD's clean teacher)."""

    depth: int
    shortcut: Literal["A", "B"] = "A"
    width: int = 16

    def __post_init__(self) -> None:
        problems = depth_problems(self.depth, 2, "CIFAR ResNet")
        if self.shortcut not in ("A", "B"):
            problems.append(f"shortcut = {self.shortcut!r}: there are A (zero padding) and B (1x1 convolution)")
        if not 2 <= self.width <= 4096 or self.width % 2:
            problems.append(
                f"width = {self.width}: a CIFAR ResNet needs 2 to 4096 planes, an even number (16 in the paper)"
            )
        if problems:
            raise ConfigError(problems)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return CifarResNet((self.depth - 2) // 6, shape[0], classes, self.width, self.shortcut)


@dataclass
class ResNet20:
    """ResNet-20 for CIFAR (0.27 M parameters)."""

    shortcut: Literal["A", "B"] = "A"
    width: int = 16

    depth: ClassVar[int] = 20

    def __post_init__(self) -> None:
        self._model = AnyDepth(self.depth, self.shortcut, self.width)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return self._model(shape, classes)


class ResNet8(ResNet20):
    """ResNet-8 for CIFAR (0.08 M parameters)."""

    depth = 8


class ResNet32(ResNet20):
    """ResNet-32 for CIFAR (0.46 M parameters)."""

    depth = 32


class ResNet44(ResNet20):
    """ResNet-44 for CIFAR (0.66 M parameters)."""

    depth = 44


class ResNet56(ResNet20):
    """ResNet-56 for CIFAR (0.85 M parameters)."""

    depth = 56


class ResNet110(ResNet20):
    """ResNet-110 for CIFAR (1.7 M parameters)."""

    depth = 110


@hookimpl
def rkd_models():
    variants = (ResNet8, ResNet20, ResNet32, ResNet44, ResNet56, ResNet110)
    named = {f"resnet{variant.depth}": variant for variant in variants}
    # The letter keeps the pattern apart from resnet18, resnet34, resnet50, ... of resnet.py.
    family = Family(r"resnet(?P<depth>\d+)-(?P<shortcut>[AB])", AnyDepth, ("resnet56-B", "resnet20-A"))
    return {**named, "resnetDEPTH-SHORTCUT": family}

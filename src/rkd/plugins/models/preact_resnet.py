"""PreActResNet-18: batch norm and ReLU come before each convolution; common in fast adversarial training.

Three nets go by this name:

- `preact-resnet18`: kuangliu/pytorch-cifar. The shortcut convolution starts behind the block's first
  activation, as in the paper, and nothing lies between the last block and the pooling.
- `preact-resnet18-bn`: with the paper's last batch norm and ReLU, `bn`; the nets of Rice2020, AWP and
  Addepalli2021.
- option `shortcut=raw`: the shortcut convolution takes the block's raw input (Wong2020 on RobustBench). The
  weights have the same names and shapes, so no loader can tell: with the wrong choice a checkpoint loads and
  is wrong.

Parameter names are kuangliu's (`conv1`, `layer1.0.bn1`, `layer2.0.shortcut.0`, `bn`, `linear`). Against
torchvision, which has only post-activation ResNets, the stem is a 3x3 convolution of stride 1 without
pooling. Any image size works.

References: he2016identity
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rkd.plugin import ConfigError, Shape, hookimpl


class PreActBlock(nn.Module):
    """`(B, inputs, H, W)` to `(B, planes, H / stride, W / stride)`."""

    def __init__(self, inputs: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = None
        self.raw = shortcut == "raw"
        if stride != 1 or inputs != planes:
            # In a Sequential for its name alone.
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        around = x
        if self.shortcut is not None:
            around = self.shortcut(x if self.raw else out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + around


class PreActResNet(nn.Module):
    """Four stages of two blocks with `width`, 2, 4 and 8 times `width` planes."""

    def __init__(self, channels: int, classes: int, width: int, final_bn: bool, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.layer1 = self._stage(width, width, 1, shortcut)
        self.layer2 = self._stage(width, 2 * width, 2, shortcut)
        self.layer3 = self._stage(2 * width, 4 * width, 2, shortcut)
        self.layer4 = self._stage(4 * width, 8 * width, 2, shortcut)
        self.bn = nn.BatchNorm2d(8 * width) if final_bn else None
        self.linear = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(inputs: int, planes: int, stride: int, shortcut: str) -> nn.Sequential:
        return nn.Sequential(PreActBlock(inputs, planes, stride, shortcut), PreActBlock(planes, planes, 1, shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(out.mean((2, 3)))


@dataclass
class PreActResNet18:
    """PreActResNet-18 for small images (11.2 M parameters); final_bn for the variant of Rice2020 and AWP."""

    width: int = 64
    final_bn: bool = False
    shortcut: Literal["activated", "raw"] = "activated"

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.width <= 4096:
            problems.append(f"width = {self.width}: a ResNet needs 1 to 4096 planes (64 in the papers)")
        if self.shortcut not in ("activated", "raw"):
            problems.append(f"shortcut = {self.shortcut!r}: it takes the 'activated' or the 'raw' input")
        if problems:
            raise ConfigError(problems)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return PreActResNet(shape[0], classes, self.width, self.final_bn, self.shortcut)


@dataclass
class PreActResNet18BN(PreActResNet18):
    """PreActResNet-18 with batch norm before the pooling, as in the checkpoints of Rice2020 and AWP."""

    final_bn: bool = True


@hookimpl
def rkd_models():
    return {"preact-resnet18": PreActResNet18, "preact-resnet18-bn": PreActResNet18BN}

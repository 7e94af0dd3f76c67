"""Wide ResNets, the usual robust teachers: WRN-DEPTH-WIDTH with 6n + 4 layers.

The three stages have 16, 32 and 64 times WIDTH planes. Two layouts, whose public checkpoints differ in names
and in one detail of the arithmetic:

- `wrn34-10` (ReLU): the layout of TRADES (`conv1`, `block1.layer.0.bn1`, `block1.layer.0.convShortcut`,
  `bn1`, `fc`), which ARD, RSLAD, MTARD, LBGAT, AWP, LTD and RobustBench's `WideResNet` share. Their nets take
  plain [0, 1] images, mostly. Many of their files hold a second copy of the first stage, `sub_block1`, that
  no forward ever ran (`ignored_keys`).
- `dm-wrn28-10` (SiLU), also called `wrn28-10-swish`: DeepMind's layout (`init_conv`,
  `layer.0.block.0.batchnorm_0`, `batchnorm`, `logits`) of the Gowal2020, Rebuffi2021, Pang2022 and Wang2023
  checkpoints, RobustBench's `DMWideResNet`. RSLAD's and MTARD's teachers on CIFAR-100 are `dm-wrn70-16` and, clean,
  `dm-wrn22-6`. A convolution of stride 2 pads behind only, as TensorFlow does (`SAME`). These nets normalise inside:
  RobustBench's files hold the numbers as `mean` and `std`, which are read; Wang2023's own files hold none
  (`--set teachers.robust.normalize=data` on CIFAR, `half` on SVHN,
  `0.4802,0.4481,0.3975/0.2302,0.2265,0.2262` on Tiny ImageNet) and two sets of weights, of which
  `FILE#model_state_dict` is the averaged one. RSLAD's script normalises CIFAR-100 images with the numbers of CIFAR-10,
  RobustBench with those of CIFAR-100.

torchvision's `wide_resnet50_2` is a bottleneck ResNet for large images, another net. Any image size works
here: the last pooling is global, and `SAME` padding is computed for odd sizes too, where DeepMind's PyTorch
code has no answer.

References: zagoruyko2016wide, gowal2020uncovering
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rkd.plugin import ConfigError, Family, Shape, hookimpl, shown


class Block(nn.Module):
    """Pre-activated residual block: `(B, inputs, H, W)` to `(B, planes, H / stride, W / stride)`."""

    def __init__(self, inputs: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == planes else nn.Conv2d(inputs, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        # A convolution around the block starts behind the activation, an identity before it.
        around = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)))
        return around + self.conv2(self.dropout(out))


class Stage(nn.Module):
    """Several blocks in a row, under the name that the checkpoints give them."""

    def __init__(self, blocks: int, inputs: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = Block(inputs, planes, stride, dropout)
        self.layer = nn.Sequential(first, *(Block(planes, planes, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Zagoruyko's net with the parameter names of TRADES."""

    ignored_keys: ClassVar[tuple[str, ...]] = ("sub_block1.",)
    """Beginnings of keys in public checkpoints that may be dropped: no forward uses them."""

    def __init__(self, blocks: int, channels: int, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, 16, 16 * width, 1, dropout)
        self.block2 = Stage(blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = Stage(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))


class SwishBlock(nn.Module):
    """DeepMind's block: `(B, inputs, H, W)` to `(B, planes, ceil(H / stride), ceil(W / stride))`."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, planes, 3, stride, padding=1 if stride == 1 else 0, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.conv_1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = None if inputs == planes else nn.Conv2d(inputs, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.batchnorm_0(x))
        around = x if self.shortcut is None else self.shortcut(out)
        if self.stride == 2:
            # `SAME`: an even side needs one row, which goes behind; an odd side one at each end.
            out = F.pad(out, (out.shape[3] % 2, 1, out.shape[2] % 2, 1))
        out = F.silu(self.batchnorm_1(self.conv_0(out)))
        return around + self.conv_1(out)


class SwishStage(nn.Module):
    """Several blocks in a row, under the name that the checkpoints give them."""

    def __init__(self, blocks: int, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        first = SwishBlock(inputs, planes, stride)
        self.block = nn.Sequential(first, *(SwishBlock(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SwishWideResNet(nn.Module):
    """DeepMind's wide ResNet with the parameter names of their PyTorch model zoo."""

    def __init__(self, blocks: int, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            SwishStage(blocks, 16, 16 * width, 1),
            SwishStage(blocks, 16 * width, 32 * width, 2),
            SwishStage(blocks, 32 * width, 64 * width, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = self.layer(self.init_conv(x))
        return self.logits(F.silu(self.batchnorm(out)).mean((2, 3)))


def depth_problems(depth: int, rest: int, name: str) -> list[str]:
    """What is wrong with the depth of a net of 6n + `rest` layers, n >= 1."""
    least = 6 + rest
    if depth > 2000:
        return [f"depth {shown(depth, 20)}: at most 2000 layers"]
    if depth >= least and (depth - rest) % 6 == 0:
        return []
    near = max(least, 6 * round((depth - rest) / 6) + rest)
    return [f"depth {depth}: a {name} has 6n + {rest} layers, the nearest is {near}"]


def check(depth: int, width: int, dropout: float = 0.0) -> None:
    """Raise ConfigError for a net that does not exist."""
    problems = depth_problems(depth, 4, "wide ResNet")
    if not 1 <= width <= 1000:
        problems.append(f"width {shown(width, 20)}: a wide ResNet widens 1 to 1000 times (wrn34-10: 10 times)")
    if not 0 <= dropout < 1:
        problems.append(f"dropout = {dropout:g}: a probability from 0 to below 1")
    if problems:
        raise ConfigError(problems)


@dataclass
class WRN:
    """Wide ResNet with the layout of TRADES; wrn34 is WRN-34-10, the usual robust teacher."""

    depth: int
    width: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self.depth, self.width, self.dropout)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return WideResNet((self.depth - 4) // 6, shape[0], classes, self.width, self.dropout)


@dataclass
class SwishWRN:
    """Wide ResNet with SiLU and DeepMind's layout, for the checkpoints of Gowal2020 and its successors."""

    depth: int
    width: int = 10

    def __post_init__(self) -> None:
        check(self.depth, self.width)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return SwishWideResNet((self.depth - 4) // 6, shape[0], classes, self.width)


@hookimpl
def rkd_models():
    return {
        "wrnDEPTH-WIDTH": Family(
            r"wrn(?P<depth>\d+)(-(?P<width>\d+))?", WRN, ("wrn34", "wrn34-10", "wrn28-10", "wrn16-2")
        ),
        "dm-wrnDEPTH-WIDTH": Family(
            r"dm-wrn(?P<depth>\d+)(-(?P<width>\d+))?", SwishWRN, ("dm-wrn28-10", "dm-wrn70-16")
        ),
        "wrnDEPTH-WIDTH-swish": Family(
            r"wrn(?P<depth>\d+)(-(?P<width>\d+))?-swish", SwishWRN, ("wrn28-10-swish", "wrn22-6-swish")
        ),
    }

"""Small nets: a CNN for digits and MNIST, the CNN of defensive distillation, and a multilayer perceptron.

`small-cnn` is rkd's own: three stages of `blocks` 3x3 convolutions with batch norm and ReLU, 16, 32 and 64
planes, the last two halving the image (with `stride=2` all three, which costs a quarter on large images), averaged
to 2x2 positions before the linear layer. 25,978 parameters for one channel and 10 classes, 74,586 with `blocks=2`,
whatever the image size. Two choices come from adversarial training on digits (38/255, 25 epochs, 3 seeds): strides
gave 82 % under PGD-20 where max-pooling gave 74 %; and on the same digits at 28x28, where a single position would
see too little of the image, 2x2 positions gave 92 % clean after 6 epochs against 29 %.

`papernot-cnn` is the net of Papernot et al.: two 3x3 convolutions, pooling, two more, pooling, two hidden
layers with dropout. The paper does not say how it pads. `padding=valid` is Carlini and Wagner's
re-implementation (312,202 parameters on MNIST), which shrinks the image and needs 16x16 at least; the default
`same` takes any size. Carlini and Wagner drop units out behind the first hidden layer only, the paper "in the
fully connected layers": here behind both. The softmax and its temperature belong to the loss.

No public PyTorch checkpoints; torchvision has no such nets.

References: papernot2016distillation
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rkd.plugin import ConfigError, Refused, Shape, hookimpl


class SmallNet(nn.Module):
    """Three stages with `width`, 2 and 4 times `width` planes; see the module's docstring."""

    def __init__(self, channels: int, classes: int, width: int, blocks: int, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        strides = (stride, 2, 2)
        inputs = channels
        for stage in range(3):
            planes = width * 2**stage
            for place in range(blocks):
                convolution = nn.Conv2d(inputs, planes, 3, 1 if place else strides[stage], padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(planes), nn.ReLU()]
                inputs = planes
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(4 * inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        return self.linear(F.adaptive_avg_pool2d(self.features(x), 2).flatten(1))


@dataclass
class SmallCNN:
    """Small CNN for digits and MNIST (26 thousand parameters): 3 stages of 16, 32 and 64 planes."""

    width: int = 16
    blocks: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.stride <= 8:
            problems.append(f"stride = {self.stride}: small-cnn needs 1 to 8, the first convolution's")
        if not 1 <= self.width <= 65_536:
            problems.append(f"width = {self.width}: small-cnn needs 1 to 65536 planes (16 by default)")
        if not 1 <= self.blocks <= 1000:
            problems.append(f"blocks = {self.blocks}: small-cnn needs 1 to 1000 convolutions a stage")
        if problems:
            raise ConfigError(problems)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return SmallNet(shape[0], classes, self.width, self.blocks, self.stride)


class PapernotNet(nn.Module):
    """Convolutions with `planes` and 2 * `planes` planes, then two hidden layers of `hidden` units."""

    def __init__(self, shape: Shape, classes: int, planes: int, hidden: int, pad: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, planes, 3, padding=pad)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=pad)
        self.conv3 = nn.Conv2d(planes, 2 * planes, 3, padding=pad)
        self.conv4 = nn.Conv2d(2 * planes, 2 * planes, 3, padding=pad)
        for _ in range(2):
            # Two convolutions take 2 * (1 - pad) pixels each, pooling halves and rounds down.
            height, width = ((side - 4 * (1 - pad)) // 2 for side in (height, width))
        if min(height, width) < 1:
            raise Refused(
                f"papernot-cnn with padding={'same' if pad else 'valid'} leaves nothing of images of "
                f"{shape[1]}x{shape[2]} pixels (16x16 at least with 'valid', 4x4 with 'same')"
            )
        self.fc1 = nn.Linear(2 * planes * height * width, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, normalised, to logits `(B, K)`."""
        out = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        out = F.max_pool2d(F.relu(self.conv4(F.relu(self.conv3(out)))), 2)
        out = self.dropout(F.relu(self.fc1(out.flatten(1))))
        return self.fc3(self.dropout(F.relu(self.fc2(out))))


@dataclass
class PapernotCNN:
    """The CNN of defensive distillation, in its size for MNIST or for CIFAR."""

    size: Literal["mnist", "cifar"] = "mnist"
    padding: Literal["same", "valid"] = "same"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        if self.size not in ("mnist", "cifar"):
            problems.append(f"size = {self.size!r}: papernot-cnn comes in 'mnist' and 'cifar'")
        if self.padding not in ("same", "valid"):
            problems.append(f"padding = {self.padding!r}: papernot-cnn pads 'same' or 'valid'")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout = {self.dropout:g}: a probability from 0 to below 1")
        if problems:
            raise ConfigError(problems)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        planes, hidden = (32, 200) if self.size == "mnist" else (64, 256)
        return PapernotNet(shape, classes, planes, hidden, int(self.padding == "same"), self.dropout)


@dataclass
class MLP:
    """Multilayer perceptron with ReLU; layers=0 is softmax regression."""

    hidden: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.hidden <= 65_536:
            problems.append(f"hidden = {self.hidden}: a hidden layer needs 1 to 65536 units")
        if not 0 <= self.layers <= 1000:
            problems.append(f"layers = {self.layers}: a perceptron has 0 to 1000 hidden layers")
        if problems:
            raise ConfigError(problems)

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        parts: list[nn.Module] = [nn.Flatten()]
        inputs = shape[0] * shape[1] * shape[2]
        for _ in range(self.layers):
            parts += [nn.Linear(inputs, self.hidden), nn.ReLU()]
            inputs = self.hidden
        return nn.Sequential(*parts, nn.Linear(inputs, classes))


@hookimpl
def rkd_models():
    return {"small-cnn": SmallCNN, "papernot-cnn": PapernotCNN, "mlp": MLP}

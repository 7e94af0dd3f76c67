"""Nets of other libraries, behind a resizing where images are too small for them.

Not a plugin: timm.py and torchvision.py share it. Those nets were made for 224x224 pixels. Whether one takes
8x8 is not written anywhere, so `fit` tries it out: once, in eval mode, when the net is built. It also refuses
a net that leaves pixels unread at the right or lower edge (a transformer with patches of 16 pixels reads 16
of 28): an attacker would be given fewer pixels than the threat model says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkd.core.errors import ConfigError, Refused, RkdError
from rkd.core.types import Shape

SIDES = (32, 64, 128, 224)

Size = tuple[int, int]


class Resized(nn.Module):
    """`net` behind a bilinear resizing of images `(B, C, H, W)` to `size`; parameters are called `net.*`."""

    def __init__(self, net: nn.Module, size: Size, shape: Shape) -> None:
        super().__init__()
        self.net = net
        self.size = size
        self.antialias = size[0] < shape[1] or size[1] < shape[2]

    def resize(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, *size)`."""
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=self.antialias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.resize(x))

    def extra_repr(self) -> str:
        return f"size={self.size[0]}x{self.size[1]}"


def fit(
    build: Callable[[Size], nn.Module], shape: Shape, classes: int, name: str, resize: int | None
) -> nn.Module:
    """What `build(size)` makes for the images' own size or, resized, for the first larger size that works.

    Larger sizes are the sides rounded up to multiples of 32, then squares of 32, 64, 128 and 224 pixels.
    `resize`, if given, is the only size to try.
    """
    if resize is not None and resize < 1:
        raise ConfigError(f"resize = {resize}: a side in pixels to which images are resized, such as 224")
    own = shape[1:]
    if resize is not None:
        sizes = [(resize, resize)]
    else:
        rounded = (-(-own[0] // 32) * 32, -(-own[1] // 32) * 32)
        sizes = [own, rounded, *((side, side) for side in SIDES if side > max(own))]
    flaws: dict[Size, str] = {}
    for size in dict.fromkeys(sizes):
        try:
            with warnings.catch_warnings():
                # Transformers without a single patch say so; they fail right afterwards.
                warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
                net = build(size)
                if size != own:
                    net = Resized(net, size, shape)
                flaw = try_out(net, shape, classes)
        except RkdError:
            raise
        except Exception as error:  # these libraries let anything out: assertions, shapes, divisions by zero
            flaw = f"{type(error).__name__}: {error}".splitlines()[0]
        if not flaw:
            return net
        flaws[size] = flaw
    tried = "\n".join(f"  {size[0]}x{size[1]}: {flaw}" for size, flaw in flaws.items())
    raise Refused(
        f"{name} takes no images of {shape[0]} channels and {own[0]}x{own[1]} pixels. Tried:\n{tried}\n"
        "Take another model, or set its option resize to a side that it takes."
    )


def try_out(net: nn.Module, shape: Shape, classes: int) -> str | None:
    """What is wrong with the net for images of that shape; None if nothing is. Raises what the net raises."""
    noise = torch.Generator().manual_seed(0)  # the global generator belongs to the run
    x = torch.rand(1, *shape, generator=noise).repeat(4, 1, 1, 1)
    other = torch.rand(shape, generator=noise)
    x[1, :, -1] = other[:, -1]
    x[2, :, :, -1] = other[:, :, -1]
    x[3] = other
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            logits = net(x)
            if not isinstance(logits, Tensor) or logits.shape != (4, classes):
                given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                return f"gives {given} instead of logits (4, {classes})"
            # Some heads are all zeros at the start: the features tell more.
            features = _features(net, x, logits)
    finally:
        net.train(was_training)
    change = [float((changed - features[0]).abs().max()) for changed in features[1:]]
    if min(change[:2]) <= 1e-6 * change[2] and change[2] > 0:
        return "does not read the last row or column of pixels"
    return None


def _features(net: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
    """What the net makes of images `(B, ...)` before its head where it can tell, else its logits."""
    inner = net.net if isinstance(net, Resized) else net
    extract = getattr(inner, "forward_features", None)
    if extract is None:
        return logits
    features = extract(net.resize(x) if isinstance(net, Resized) else x)
    return features if isinstance(features, Tensor) and len(features) == len(x) else logits

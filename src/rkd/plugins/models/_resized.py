"""Nets of other libraries, behind a resizing where images are too small for them.

Not a plugin: timm.py and torchvision.py share it. Those nets were made for 224x224 pixels. Whether one takes
8x8 is not written anywhere, so `fit` tries it out: once, in eval mode, when the net is built. It also refuses
a net that leaves pixels unread at the right or lower edge (a transformer with patches of 16 pixels reads 16
of 28): an attacker would be given fewer pixels than the threat model says.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rkd.plugin import ConfigError, Refused, Resize, RkdError, Shape

SIDES = (32, 64, 128, 224)
LARGEST = 1024

Size = tuple[int, int]


def fit(
    build: Callable[[Size], nn.Module],
    shape: Shape,
    classes: int,
    name: str,
    resize: int | None,
    native: Size = (224, 224),
) -> nn.Module:
    """What `build(size)` makes for the images' own size or, resized, for the first larger size that works.

    Larger sizes are the sides rounded up to multiples of 32, squares of 32, 64, 128 and 224 pixels, and
    `native`, the size that the net was made for. `resize`, if given, is the only side to try.
    """
    if resize is not None and not 1 <= resize <= LARGEST:
        raise ConfigError(f"resize = {resize}: a side of 1 to {LARGEST} pixels to which images are resized, e.g. 224")
    own = shape[1:]
    if resize is not None:
        sizes = [(resize, resize)]
    else:
        rounded = (-(-own[0] // 32) * 32, -(-own[1] // 32) * 32)
        squares = ((side, side) for side in SIDES)
        sizes = [own, rounded, *(size for size in (*squares, native) if min(size) > max(own))]
    flaws: dict[Size, str] = {}
    for size in dict.fromkeys(sizes):
        try:
            with warnings.catch_warnings():
                # Transformers without a single patch say so; they fail right afterwards.
                warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
                net = build(size)
                if size != own:
                    # Only a user's `resize` makes images smaller; then pixels must be averaged, not skipped.
                    smaller = size[0] < own[0] or size[1] < own[1]
                    net.register_forward_pre_hook(Resize(size, antialias=smaller))
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
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            logits = net(torch.rand(2, *shape, generator=_generator(), device="cpu").to(_device(net)))
    finally:
        net.train(was_training)
    if not isinstance(logits, Tensor):
        return f"gives {type(logits).__name__} instead of logits"
    if logits.shape != (2, classes):
        return f"gives {tuple(logits.shape)} for logits (2, {classes})"
    return None if reads_all(net, shape) else "does not read the last row or column of pixels"


def reads_all(net: nn.Module, shape: Shape) -> bool:
    """Whether the last row and the last column of pixels have a say in the logits."""
    # With other weights, since branches and heads that start at zero hide what lies behind them.
    twin = copy.deepcopy(net).eval()
    generator = _generator()
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu")
            parameter.add_(noise.to(parameter), alpha=0.05)
        x = torch.rand(1, *shape, generator=generator, device="cpu").to(_device(net))
        row, column = x.clone(), x.clone()
        row[:, :, -1] = 1 - row[:, :, -1]
        column[:, :, :, -1] = 1 - column[:, :, :, -1]
        # One image at a time: the same image gives the same bits then, and "no say" means equal.
        logits = twin(x)
        return not bool(logits.isfinite().all()) or not (
            torch.equal(logits, twin(row)) or torch.equal(logits, twin(column))
        )


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _generator() -> torch.Generator:
    """A generator of its own: the global one belongs to the run."""
    return torch.Generator().manual_seed(0)

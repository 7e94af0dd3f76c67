"""What several sources of data share: splits, statistics, fingerprints. No hooks."""

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from rkd.plugin import Noise, Shape, Split, ThreatModel, expanded, key

HELD_OUT = "validation takes a part of the training images (data.validation)"
"""What a user who has validation images should know: they are not used."""


def locate(path: str, dir: str | None) -> Path:
    """`path` with `~` resolved; a relative one is looked up in `dir` where that is given."""
    return expanded(dir or "") / expanded(path)


def stratified(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Ascending positions (training, test) of a fixed split: `share` of each class goes to the test part.

    The same for every run and machine: it follows from `labels (N,)` alone, by integer arithmetic. A class of two
    samples or more has at least one on either side, a single sample goes to training.
    """
    positions = torch.arange(len(labels))
    order = Noise(key("rkd test split"), positions).uniform(()).argsort(stable=True)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen[members[:count]] = True
    return positions[~chosen], positions[chosen]


def compact(images: Tensor) -> Tensor:
    """Images as uint8 where that loses nothing (a quarter of the memory), else as they are."""
    if images.dtype == torch.uint8:
        return images
    rounded = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return rounded if torch.equal(rounded.float() / 255, images.float()) else images


def spread(count: int, limit: int) -> Tensor:
    """At most `limit` positions in `range(count)`, evenly spread."""
    return torch.arange(min(count, limit)) * count // min(count, limit) if count else torch.arange(0)


def statistics(split: Split, shape: Shape, limit: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel over at most `limit` images, to four decimals.

    A channel that never changes gets std 1, so that nothing is divided by zero.
    """
    total = torch.zeros(shape[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    index = spread(len(split), limit)
    for part in index.split(max(1, 2**24 // math.prod(shape))):  # some 128 MiB at a time
        x = split.images(part).double()
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
    count = max(1, len(index) * shape[1] * shape[2])
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    rounded = [round(value, 4) for value in std.tolist()]
    return tuple(round(value, 4) for value in mean.tolist()), tuple(value or 1.0 for value in rounded)


def customary_threat(shape: Shape) -> ThreatModel:
    """Linf 8/255 up to 64 pixels (CIFAR, Tiny ImageNet), 4/255 above (ImageNet); the step is a quarter of it."""
    eps = (8 if max(shape[1:]) <= 64 else 4) / 255
    return ThreatModel("Linf", eps, eps / 4)


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that follow from tensors' values and the `str` of anything else, on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Tensor):
            array = part.contiguous().numpy()
            digest.update(f"{tuple(part.shape)} {part.dtype}\x1f".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            digest.update(f"{part}\x1f".encode())
    return digest.hexdigest()


def fingerprint_of(train: Split, test: Split) -> str:
    """The fingerprint of two splits in memory: sizes, labels, and the pixels of a thousand images of each."""
    parts = [(len(split), split.labels, split.images(spread(len(split), 1000))) for split in (train, test)]
    return fingerprint(*parts[0], *parts[1])

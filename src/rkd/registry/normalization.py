"""Input normalisations by name, or as `MEAN,.../STD,...`."""

import math
from collections.abc import Sequence

from rkd.storage.text import did_you_mean

NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and std of [0, 1] images. `half` brings them to [-1, 1]; the others are those of their training images."""

CHOICES = ("auto", "data", *NAMED)


def known_normalization(text: str) -> str:
    """`text`, if it is a choice. Raises ValueError."""
    if text not in CHOICES:
        numbers(text)
    return text


def normalization(text: str, mean: Sequence[float], std: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of [0, 1] images that `text` says; of the data for `data` and `auto`. Raises ValueError."""
    if text in ("auto", "data"):
        return mean, std
    chosen = NAMED.get(text) or numbers(text)
    if {len(chosen[0]), len(chosen[1])} - {1, len(mean)}:
        raise ValueError(f"{text} is for {max(map(len, chosen))} channels, and the images have {len(mean)}")
    return chosen


def numbers(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of `0.4914,0.4822,0.4465/0.2471,0.2435,0.2616`. Raises ValueError."""
    parts = text.split("/")
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in parts)
    except ValueError:
        raise ValueError(
            f"a normalisation is {', '.join(CHOICES)}, or MEAN,.../STD,... such as 0.5,0.5,0.5/0.25,0.25,0.25; "
            f"got {text!r}.{did_you_mean(text, CHOICES)}"
        ) from None
    if len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"{text}: as many means as stds are needed, and stds above 0")
    if max(map(abs, mean)) > 2 or max(std) > 2:
        raise ValueError(f"{text}: these are for images in 0 to 255; divide them by 255, images here lie in [0, 1]")
    return mean, std

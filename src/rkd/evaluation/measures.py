"""What is said about right and wrong answers: intervals, calibration, classes. Pure functions of tensors on the CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a fraction (Wilson, 1927)."""
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Exactly 0 and 1 at the ends, where rounding would leave a trace.
    low = (centre - spread) / scale if successes else 0.0
    high = (centre + spread) / scale if successes < count else 1.0
    return max(0.0, low), min(1.0, high)


def interval(right: Tensor) -> list[float]:
    """The 95 % interval of the share of True in `right (N,)`."""
    return list(wilson(int(right.sum()), len(right)))


def w_robust(clean: float, robust: float) -> float:
    """(clean + robust) / 2, the measure of Zhao et al. (MTARD, ECCV 2022)."""
    return (clean + robust) / 2


def nrr(clean: float, robust: float) -> float:
    """Natural-robust ratio: the harmonic mean of clean and robust accuracy."""
    return 2 * clean * robust / (clean + robust) if clean + robust else 0.0


def per_class(right: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """The accuracy on the samples of each class; None where there is no sample."""
    count = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    return [float(h / c) if c else None for h, c in zip(hits.double(), count, strict=True)]


def calibration(confidence: Tensor, right: Tensor, bins: int = 15) -> dict[str, Any]:
    """Expected calibration error in `bins` equal bins of confidence (Guo et al., ICML 2017, eq. 3).

    `confidence (N,)`: the largest probability, in [0, 1]; `right (N,)`. Gives the mean confidence, and of each bin
    from 0 to 1 how many samples it has, their mean confidence and their accuracy.
    """
    confidence, hits = confidence.double(), right.double()
    # Bins (0, 1/15], (1/15, 2/15], ...: a net that is quite sure, at 1.0, is in the last.
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    sure = torch.bincount(place, confidence, minlength=bins)
    good = torch.bincount(place, hits, minlength=bins)
    rows = [
        [int(c), float(s / c), float(g / c)] if c else [0, 0.0, 0.0]
        for c, s, g in zip(count, sure, good, strict=True)
    ]  # fmt: skip
    return {"ece": float((good - sure).abs().sum() / len(right)), "confidence": float(confidence.mean()), "bins": rows}

"""Changes of light: less contrast, more brightness.

    contrast     m + s (x - m)                    s = 0.75 0.5 0.4 0.3 0.15, m the mean of the image's channel
    brightness   x min(v + s, 1) / v              s = 0.05 0.1 0.15 0.2 0.3, v the pixel's largest channel

Brightness raises the value of HSV, the largest channel, and keeps hue and saturation; a black pixel, which has none,
turns grey. With one channel it is min(x + s, 1).

The constants and formulas are those published with CIFAR-10-C (github.com/hendrycks/robustness, `make_cifar_c.py`),
made for 32 x 32 images; here they serve any size and number of channels.

Where this differs from CIFAR-10-C: the files are rounded to 8 bits, these images are not.
"""

import torch
from torch import Tensor

from rkd.plugin import Corruption, Noise, at_severity, hookimpl


def contrast(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """Less contrast: every channel moves towards its mean."""
    share = at_severity((0.75, 0.5, 0.4, 0.3, 0.15), severity)
    mean = x.mean((2, 3), keepdim=True)
    return (mean + share * (x - mean)).clamp_(0, 1)


def brightness(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """More brightness at the same hue and saturation."""
    more = at_severity((0.05, 0.1, 0.15, 0.2, 0.3), severity)
    value = x.amax(1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x / value * raised, raised).clamp_(0, 1)


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {"contrast": contrast, "brightness": brightness}

"""JPEG: an image written with little quality, and read again.

    quality 80 65 58 50 40 at severities 1 to 5, colour stored at half the resolution (4:2:0)

Three channels are one colour image; of any other number each channel is a grey image of its own.

The qualities are those published with CIFAR-10-C (github.com/hendrycks/robustness, `make_cifar_c.py`) for 32 x 32
images; here they serve any size.

Where this differs from CIFAR-10-C: nowhere but for the version of libjpeg behind Pillow; that script uses Pillow too.
torchvision's own encoder is deprecated since its version 0.29.
"""

from io import BytesIO

import torch
from torch import Tensor

from rkd.plugin import Corruption, Noise, at_severity, hookimpl


def jpeg(x: Tensor, severity: int, noise: Noise) -> Tensor:
    """JPEG compression. One image after the other, on the CPU."""
    quality = at_severity((80, 65, 58, 50, 40), severity)
    pixels = (x * 255).round().to(torch.uint8).cpu()
    pictures = pixels.permute(0, 2, 3, 1) if x.shape[1] == 3 else pixels.flatten(0, 1)
    read = torch.stack([_again(picture, quality) for picture in pictures])
    read = read.permute(0, 3, 1, 2) if x.shape[1] == 3 else read.reshape(x.shape)
    return read.to(x.device).float() / 255


def _again(picture: Tensor, quality: int) -> Tensor:
    """An image `(H, W, 3)` or `(H, W)` uint8, written and read."""
    import numpy as np
    from PIL import Image  # here: nobody else needs it

    file = BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image))


@hookimpl
def rkd_corruptions() -> dict[str, Corruption]:
    return {"jpeg": jpeg}

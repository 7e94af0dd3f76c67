"""The gallery: clean image, perturbation and adversarial image of each example, as PNG inside the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from rkd.core.errors import RkdError
from rkd.storage.files import check_safetensors

from .data import Example
from .values import text

MOST_EXAMPLES = 24
MOST_BYTES = 512 << 20
LARGEST_SIDE = 160
"""Pixels of a side that are kept: larger images are made smaller."""

SMALL_SIDE = 64
"""Images up to this side are drawn with square pixels."""


@dataclass(frozen=True)
class Tile:
    """An example with its three images as data: URIs, and the largest change of a pixel."""

    example: Example
    clean: str
    change: str
    adversarial: str
    largest: float


@dataclass(frozen=True)
class Gallery:
    """`amplified`: by which number the changes are multiplied, the same for all tiles."""

    tiles: list[Tile]
    amplified: float
    pixelated: bool


def read_gallery(path: Path, examples: list[Example]) -> Gallery | None:
    """The images in `path` with what was said of them; None where there are none. Raises RkdError."""
    if not examples or not path.is_file():
        return None
    clean, adversarial = _tensors(path)
    count = min(len(examples), len(clean), MOST_EXAMPLES)
    if not count:
        return None
    clean, adversarial = _colours(clean[:count]), _colours(adversarial[:count])
    change = adversarial - clean
    sizes = np.abs(change).reshape(count, -1).max(1)
    largest = float(sizes.max())
    amplified = float(f"{0.5 / largest:.2g}") if largest > 0 else 1.0
    tiles = [
        Tile(example, _uri(clean[i]), _uri(0.5 + amplified * change[i]), _uri(adversarial[i]), _level(float(sizes[i])))
        for i, example in enumerate(examples[:count])
    ]
    return Gallery(tiles, amplified, max(clean.shape[1:3]) <= SMALL_SIDE)


def _tensors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`clean` and `adversarial`, `(M, C, H, W)` float32 in [0, 1], at most as many as are shown."""
    try:
        check_safetensors(path)
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        with safe_open(path, framework="np") as file:
            found = []
            for name in ("clean", "adversarial"):
                part = file.get_slice(name)
                shape = part.get_shape()
                if len(shape) != 4 or not all(shape):
                    raise ValueError(f"the images {name!r} have the shape {shape}, not (M, C, H, W)")
                found.append(np.asarray(part[: min(MOST_EXAMPLES, shape[0])]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RkdError(text(str(error), 300) or type(error).__name__) from None
    clean, adversarial = found
    if clean.shape != adversarial.shape:
        raise RkdError(f"clean and adversarial images differ in shape: {clean.shape} and {adversarial.shape}")
    for images in found:
        if images.dtype.kind != "f" or not np.isfinite(images).all():
            raise RkdError("the images are no finite floating-point numbers")
        if images.min() < -0.01 or images.max() > 1.01:
            raise RkdError("the images are not within [0, 1]")
    return clean.astype(np.float32), adversarial.astype(np.float32)


def _level(change: float) -> float:
    """A change of so many 255ths, where float32 has rounded it."""
    nearest = round(255 * change) / 255
    return nearest if abs(nearest - change) < 1e-5 else change


def _colours(images: np.ndarray) -> np.ndarray:
    """`(M, C, H, W)` to `(M, H, W, 3)`: three channels are colours, of any other number the mean is shown."""
    if images.shape[1] != 3:
        images = images.mean(1, keepdims=True).repeat(3, 1)
    return images.transpose(0, 2, 3, 1)


def _uri(image: np.ndarray) -> str:
    """`(H, W, 3)`, cut to [0, 1], as a PNG in a data: URI."""
    picture = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

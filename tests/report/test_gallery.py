"""Images of a gallery in a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rkd.core.errors import RkdError
from rkd.report import build_report
from rkd.report.data import Example, Seen
from rkd.report.gallery import read_gallery
from rkd.storage.runfolder import RunFolder

from .folders import Page, full_net, make_run, net, write_examples


def pixels(uri: str | None) -> np.ndarray:
    assert uri is not None and uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.slow
def test_the_gallery(page: Page, folder: RunFolder, tmp_path: Path) -> None:
    text = page.text("gallery")
    assert "digit 3 PGD-SAT clean digit 3 93.8 % sure change ≤ 0.1 × 5 attacked digit 8 56.2 % sure" in text
    clean, adversarial = write_examples(tmp_path / "x.safetensors")
    images = page.all("img")
    assert len(images) == 6
    shown = [pixels(image["src"]) for image in images[:3]]
    assert all(image.shape == (8, 8, 3) for image in shown)
    assert np.array_equal(shown[0][..., 0], (clean[0, 0] * 255).round().astype(np.uint8))
    assert np.array_equal(shown[2][..., 1], (adversarial[0, 0] * 255).round().astype(np.uint8))
    # Changes of 0.1 times 5 around grey: black and white.
    assert np.array_equal(shown[1][..., 2] > 128, adversarial[0, 0] > clean[0, 0])
    assert set(np.unique(shown[1])) <= {0, 255}
    fooled = [attrs for tag, attrs in page.tags if tag == "div" and "fooled" in str(attrs.get("class"))]
    assert len(fooled) == 1, "one of two was fooled"
    assert any("pixelated" in str(attrs.get("class")) for _, attrs in page.tags)


EXAMPLE = Example(0, 1, "pgd", Seen(1, 0.9), Seen(2, 0.5))


def test_large_and_colourful_images(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for channels, side in ((3, 300), (5, 20)):
        write_examples(path, 3, channels, side)
        gallery = read_gallery(path, [EXAMPLE] * 2)
        assert gallery is not None and len(gallery.tiles) == 2
        assert pixels(gallery.tiles[0].clean).shape == (min(side, 160), min(side, 160), 3)
        assert gallery.pixelated == (side == 20)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"clean": np.zeros((1, 1, 4, 4), np.float32)}, "adversarial"),
        ({"clean": np.zeros((1, 4), np.float32), "adversarial": np.zeros((1, 4), np.float32)}, "shape"),
        ({"clean": np.zeros((1, 1, 4, 4), np.float32), "adversarial": np.zeros((2, 1, 4, 4), np.float32)}, "differ"),
        ({name: np.full((1, 1, 4, 4), np.nan, np.float32) for name in ("clean", "adversarial")}, "finite"),
        ({name: np.full((1, 1, 4, 4), 7, np.float32) for name in ("clean", "adversarial")}, "within"),
        ({name: np.zeros((1, 1, 4, 4), np.int64) for name in ("clean", "adversarial")}, "floating-point"),
        ({name: np.zeros((1, 0, 4, 4), np.float32) for name in ("clean", "adversarial")}, "shape"),
        (b"no safetensors at all", "header"),
        (b"", "header"),
        (b"\xff" * 8 + b"{", "header"),
    ],
)
def test_images_that_cannot_be_shown(tmp_path: Path, tensors: Any, why: str) -> None:
    path = tmp_path / "examples.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    with pytest.raises(RkdError, match=f"(?i){why}"):
        read_gallery(path, [EXAMPLE])


def test_bfloat16_images(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save

    folder = make_run(tmp_path / "a", student=net() | {"examples": full_net()["examples"]}, epochs=0)
    save({name: torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16) for name in ("clean", "adversarial")}, folder.examples)
    report = build_report(folder)
    assert "<img" not in report.html and "a gallery" in report.html
    assert len(report.left_out) == 1 and report.left_out[0].startswith("examples.safetensors: ")
    assert "examples.safetensors" in Page(report.html).text("left-out")

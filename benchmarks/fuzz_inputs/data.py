"""Data sets and corrupted images on disk."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rkd.core.errors import DataError
from rkd.evaluation.corruptions import open_corrupted
from rkd.plugins.datasets import imagefolder, npz
from rkd.plugins.datasets import torchvision as published
from rkd.plugins.datasets._cifar import ArrayUnpickler

from .strange import Evil, catalog, scribbled, special, strange


def idx_files(rng: random.Random, folder: Path) -> None:
    """MNIST's four files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + bytes(rng.randrange(256) for _ in range(count * 784))
        labels = struct.pack(">II", 0x801, count) + bytes(rng.randrange(10) for _ in range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            kind = rng.random()
            if kind < 0.2:
                content = scribbled(rng, content)
            elif kind < 0.4:
                sizes = [rng.choice((0, 1, count, 28, 2**31, 2**32 - 1)) for _ in range(3)]
                kept = sizes[: rng.randint(0, 3)]
                magic = rng.choice((0x800, 0x900, 0xD00)) + len(kept)
                content = struct.pack(f">{1 + len(kept)}I", magic, *kept) + content[16:]
            (raw / name).write_bytes(content)
    published.Mnist(dir=str(folder))()


def cifar_pickle(rng: random.Random, folder: Path) -> None:
    """A pickle in place of CIFAR's: with its MD5 wrong, and past the MD5, at the unpickler itself."""
    entry: Any = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], "filenames": [b"a.png"]}
    kind = rng.random()
    if kind < 0.3:
        entry = rng.choice(
            ({"data": Evil(folder)}, [Evil(folder)], {"data": print}, {"data": np.array([Evil(folder)])})
        )
    content = pickle.dumps(entry, protocol=rng.randrange(6))
    if kind > 0.5:
        content = scribbled(rng, content)
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (base / name).write_bytes(content)
    try:
        published.Cifar10(dir=str(folder))()
        raise AssertionError("files that are not the published ones were read")
    except DataError:
        pass
    try:
        ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # `_dataset` makes one message of all of them
        raise DataError(f"{type(error).__name__}: {error}") from error


def npz_file(rng: random.Random, folder: Path) -> None:
    """A NumPy archive of images."""
    file = folder / "data.npz"
    arrays: dict[str, Any] = {
        "x_train": np.zeros((6, 8, 8), np.uint8),
        "y_train": np.arange(6) % 3,
        "x_test": np.zeros((3, 8, 8), np.uint8),
        "y_test": np.arange(3),
    }
    odd = (
        np.array([Evil(folder)]),
        np.array("x"),
        np.zeros((0, 8, 8)),
        np.full((6, 8, 8), np.nan),
        np.zeros((6, 8, 8, 3)),
        np.array([2**62] * 6),
        np.array([-5] * 6),
        np.zeros(6, complex),
        np.zeros(3, "M8[s]"),
        np.zeros((6, 8, 8), "O"),
        np.zeros((6, 1), np.int8),
        np.zeros((6, 8, 8), [("a", "f4")]),
        np.full((6, 8, 8), np.inf),
    )
    for name in arrays:
        if rng.random() < 0.3:
            arrays[name] = odd[rng.randrange(len(odd))]
    out = io.BytesIO()
    kind = rng.random()
    if kind < 0.8:
        (np.savez if rng.random() < 0.5 else np.savez_compressed)(out, **arrays)  # type: ignore[operator]
    else:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.save(member, array, allow_pickle=True)
                content = member.getvalue()
                if rng.random() < 0.4:
                    shape = rng.choice((b"(99999999999, 8, 8), }", b"(-6, 8, 8), }", b"((6,)*9), }", b"(1e9,), }"))
                    content = content.replace(b"(6, 8, 8), }", shape).replace(b"(6,), }", shape)
                archive.writestr(rng.choice((f"{name}.npy", f"../../{name}.npy", f"/{name}.npy", name)), content)
    content = out.getvalue()
    file.write_bytes(scribbled(rng, content) if rng.random() < 0.4 else content)
    npz.Npz(path=str(file), layout=rng.choice(("auto", "NHWC", "NCHW")))()


def npz_options(rng: random.Random, folder: Path) -> None:
    """A sound NumPy archive with strange options."""
    file = folder / "data.npz"
    images = np.zeros((6, 8, 8), np.uint8)
    np.savez(file, x_train=images, y_train=np.arange(6) % 3, x_test=images[:3], y_test=np.arange(3))
    if rng.random() < 0.05:
        special(rng, file)
    keys = [field.name for field in fields(npz.Npz) if field.name not in ("path", "download")]
    counts = (10**9, 10**5, 4, 3, 2, -1, 2**62)
    options = {key: rng.choice((rng.choice(counts), strange(rng))) for key in rng.sample(keys, rng.randint(1, 2))}
    options.pop("dir", None)
    catalog().create("dataset", f"npz:{file}", options)()


def image_folder(rng: random.Random, folder: Path) -> None:
    """A folder of images by class."""
    root = folder / "images"
    for number in range(rng.randint(1, 3)):
        place = root / rng.choice(("a", "b", "<b>", "..x", "\x1b[31m", "ü" * 60, "train", "test"))
        place.mkdir(parents=True, exist_ok=True)
        for name in ("1", "2"):
            kind = rng.choice(
                ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "EPS" if rng.random() < 0.2 else "PNG")
            )
            out = io.BytesIO()
            Image.new(rng.choice(("RGB", "L")), (8, 8 if rng.random() < 0.97 else 9), number).save(out, kind)
            content = out.getvalue()
            if rng.random() < 0.08:
                content = scribbled(rng, content)
            elif rng.random() < 0.2 and kind == "PNG":  # a header that says any size
                width, height = rng.choice(((60_000, 60_000), (9_000, 9_000), (1, 2**31 - 1), (2**31 - 1, 1), (0, 0)))
                content = content[:16] + struct.pack(">II", width, height) + content[24:]
            file = place / f"{name}.{rng.choice(('png', 'jpg', 'tif'))}"
            file.unlink(missing_ok=True)
            if rng.random() < 0.05:
                special(rng, file)
            else:
                file.write_bytes(content)
    imagefolder.ImageFolder(path=str(root), size=rng.choice((None, None, 8, 16)))()


def corrupted_files(rng: random.Random, folder: Path) -> None:
    """A folder in the form of CIFAR-10-C."""
    for name, array in (("fog", np.zeros((10, 8, 8, 3), np.uint8)), ("labels", np.array([0, 1] * 5))):
        out = io.BytesIO()
        np.save(
            out,
            rng.choice((array, array, array, array.astype(float), array[:7], np.array([Evil(folder)]))),  # type: ignore[call-overload]
            allow_pickle=True,
        )
        content = out.getvalue()
        kind = rng.random()
        if kind < 0.3:
            content = scribbled(rng, content)
        elif kind < 0.4:
            content = content.replace(b"(10,", rng.choice((b"(99999999999,", b"(-10,", b"(True,")))
        (folder / f"{name}.npy").write_bytes(content)
        if rng.random() < 0.05:
            special(rng, folder / f"{name}.npy")
    files = open_corrupted(folder, ["fog"], rng.choice((None, (3, 8, 8))), rng.choice((None, 2)))
    files.images("fog", rng.randint(1, 5), torch.tensor([0]))

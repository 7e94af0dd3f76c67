"""CIFAR's published files, which are pickles: read as arrays and text, never as code. No hooks.

torchvision unpickles them whole once their MD5 is right. Here the bytes whose MD5 was taken are the bytes that are
read, and the reader knows nothing but NumPy's arrays: a file that names anything else is refused.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # bytes in the protocol of Python 2
}


class ArrayUnpickler(pickle.Unpickler):
    """Containers, numbers, text and NumPy arrays. Raises UnpicklingError for anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is code and no data")
        return super().find_class(module, name)


def read_cifar(reader: Any, root: Path, download: bool) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Images `(N, 3, 32, 32)` uint8 and labels `(N,)` of both parts, and the classes' names.

    `reader` is torchvision's class, which knows the files and their MD5. Raises whatever is wrong with them.
    """
    from torchvision.datasets import cifar

    folder = root / reader.base_folder
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    if download and not all(_intact(folder / name, md5) for name, md5 in listed):
        cifar.download_and_extract_archive(reader.url, str(root), filename=reader.filename, md5=reader.tgz_md5)
    parts = [_part(folder, files) for files in (reader.train_list, reader.test_list)]
    names = _read(folder / reader.meta["filename"], reader.meta["md5"])[reader.meta["key"]]
    return parts, tuple(str(name) for name in names)


def _part(folder: Path, files: list[list[str]]) -> tuple[Tensor, Tensor]:
    entries = [_read(folder / name, md5) for name, md5 in files]
    images = np.vstack([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    labels = [label for entry in entries for label in entry["labels" if "labels" in entry else "fine_labels"]]
    return torch.from_numpy(images), torch.as_tensor(labels, dtype=torch.int64)


def _read(path: Path, md5: str) -> Any:
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"the MD5 of {path.name} is not the published one")
    return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


def _intact(path: Path, md5: str) -> bool:
    return path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5

"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, read and downloaded by torchvision.

Images stay in their original order, as uint8 in memory. Files are looked for below `dir` (by default `data` in the
current folder), in torchvision's own layout, and fetched only with `download=true`.

Threat models: Linf 8/255 for CIFAR and SVHN and 0.3 for MNIST (Madry et al., below), 0.1 for Fashion-MNIST. The step of
a training attack is a quarter of eps everywhere, as 2/255 is of CIFAR's 8/255: ten steps then cross the ball.
`mean` and `std` are the constants that most published nets were trained with.

References: lecun1998gradient, xiao2017fashion, krizhevsky2009learning, netzer2011reading, madry2018towards
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rkd.plugin import (
    ArraySplit,
    DataError,
    Dataset,
    ThreatModel,
    expanded,
    fingerprint_of,
    hookimpl,
)

from ._cifar import read_cifar

MOST_BYTES = 512 << 20
"""Bytes of a file that is read; the largest published one, SVHN's training part, has 182 million."""

DIGITS = tuple("0123456789")
CIFAR: dict[str, Any] = {
    "threat": ThreatModel("Linf", 8 / 255, 2 / 255),
    "defaults": {"epochs": 100, "batch_size": 128, "augments": {"crop": {"padding": 4}, "flip": {}}},
}


@dataclass
class Published:
    """What the five share: `dir`, the folder that holds the files, and whether to fetch what is missing of them."""

    dir: str | None = None
    download: bool = False

    name: ClassVar[str]
    source: ClassVar[str]
    """torchvision's class."""
    facts: ClassVar[Mapping[str, Any]]
    """Fields of the `Dataset` that are known beforehand; `classes` where torchvision's own names are not wanted."""

    def __call__(self) -> Dataset:
        from torchvision import datasets  # here: torchvision takes a second to import

        reader = getattr(datasets, self.source)
        root = expanded(self.dir or "data")
        for file, _ in _files(reader):
            path = root / file
            if path.exists() and not path.is_file():
                raise DataError(f"data set {self.name!r}: {path} is no file, but a folder, a FIFO or a device")
            if path.is_file() and path.stat().st_size > MOST_BYTES:  # it would be read as a whole
                raise DataError(
                    f"data set {self.name!r}: {root / file} is larger than {MOST_BYTES >> 20} MiB, so it is another"
                )
        try:
            # Some releases of torchvision print to stdout, which belongs to the results.
            with redirect_stdout(sys.stderr):
                parts, names = _read(reader, root, self.download)
                train, test = (ArraySplit(*part) for part in parts)
                if not len(train) or not len(test):
                    raise ValueError("there is not a single image in it")
        except Exception as error:  # RuntimeError, OSError, ValueError, AssertionError, pickle's, scipy's, ...
            raise DataError(_explain(self.name, reader, root, self.download, error)) from error
        channels, height, width = train.images(torch.tensor([0])).shape[1:]
        fields = {"classes": tuple(names), "fingerprint": fingerprint_of(train, test), **self.facts}
        return Dataset(name=self.name, train=train, test=test, shape=(channels, height, width), **fields)


class Mnist(Published):
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28 grey; `dir` holds `MNIST/raw/`."""

    name, source = "mnist", "MNIST"
    facts = {
        "classes": DIGITS,
        "mean": (0.1307,),
        "std": (0.3081,),
        "threat": ThreatModel("Linf", 0.3, 0.075),
        "defaults": {
            "epochs": 8,
            "batch_size": 128,
            "optimizer": {"lr": 0.1, "schedule": "points(0:0, 0.2:1, 1:0)"},
            # Small nets that are attacked with 0.3 from the start end as a constant: eps grows over the first part.
            "attack": {"eps": "ramp(0, 0.3, until=0.4)"},
        },
        "teachers": {
            # TRADES at beta 6 lost its robustness again on such nets (78 % under PGD-10 after two epochs, 37 % after
            # four).
            "robust": {"model": "small-cnn", "recipe": {"loss": {"name": "pgd-at"}}},
            "clean": {"model": "small-cnn"},
        },
    }


class FashionMnist(Published):
    """Fashion-MNIST: 60,000 + 10,000 pieces of clothing, 28x28 grey; `dir` holds `FashionMNIST/raw/`."""

    name, source = "fashion-mnist", "FashionMNIST"
    facts = {
        "mean": (0.2860,),
        "std": (0.3530,),
        "threat": ThreatModel("Linf", 0.1, 0.025),
        "defaults": {"epochs": 30, "batch_size": 128},
    }


class Cifar10(Published):
    """CIFAR-10: 50,000 + 10,000 photographs in 10 classes, 32x32 colour; `dir` holds `cifar-10-batches-py/`."""

    name, source = "cifar10", "CIFAR10"
    facts = CIFAR | {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


class Cifar100(Published):
    """CIFAR-100: 50,000 + 10,000 photographs in 100 classes, 32x32 colour; `dir` holds `cifar-100-python/`."""

    name, source = "cifar100", "CIFAR100"
    facts = CIFAR | {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}


class Svhn(Published):
    """SVHN: 73,257 + 26,032 house numbers' digits, 32x32 colour.

    `dir` holds `train_32x32.mat` and `test_32x32.mat`; the `extra` images are not used. The published files call the
    digit 0 class 10; here it is class 0.
    """

    name, source = "svhn", "SVHN"
    facts = {
        "classes": DIGITS,
        "mean": (0.4377, 0.4438, 0.4728),
        "std": (0.1980, 0.2010, 0.1970),
        "threat": CIFAR["threat"],
        # A mirrored digit is another sign or none: crops only.
        "defaults": {"epochs": 30, "batch_size": 128, "augments": {"crop": {"padding": 4}}},
    }


def _read(reader: Any, root: Path, download: bool) -> tuple[list[tuple[Tensor, Tensor]], Sequence[str]]:
    """Images and labels of both parts, and the classes' names. Raises whatever is wrong with the files."""
    if hasattr(reader, "train_list"):
        return read_cifar(reader, root, download)
    if hasattr(reader, "split_list"):
        halves = [reader(str(root), split=part, download=download) for part in ("train", "test")]
        return [
            (torch.as_tensor(h.data).contiguous(), torch.as_tensor(h.labels, dtype=torch.int64)) for h in halves
        ], ()
    from torchvision.datasets import mnist

    raw = root / reader.__name__ / "raw"
    if download and not all((root / file).is_file() for file, _ in _files(reader)):
        # Where there is such a folder torchvision reads the tensors in it, and downloads nothing.
        if (old := raw.with_name("processed")).exists():
            raise RuntimeError(f"{old}, of an old torchvision, is in the way: remove it")
        reader(str(root), download=True)
    parts = [
        (mnist.read_image_file(str(raw / f"{part}-images-idx3-ubyte")).unsqueeze(1),
         mnist.read_label_file(str(raw / f"{part}-labels-idx1-ubyte")))
        for part in ("train", "t10k")
    ]  # fmt: skip
    return parts, reader.classes


def _files(reader: Any) -> list[tuple[str, str | None]]:
    """Each file that torchvision's class needs, below its root, with the MD5 that torchvision expects."""
    if hasattr(reader, "resources"):  # torchvision checks the MD5 of MNIST's archives only
        return [(f"{reader.__name__}/raw/{Path(url).stem}", None) for url, _ in reader.resources]
    if hasattr(reader, "split_list"):
        return [(file, md5) for _, file, md5 in (reader.split_list["train"], reader.split_list["test"])]
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    return [(f"{reader.base_folder}/{file}", md5) for file, md5 in listed]


def _explain(name: str, reader: Any, root: Path, download: bool, error: Exception) -> str:
    """What is wrong with the files of a data set that torchvision could not read, and what to type."""
    files = _files(reader)
    missing = [file for file, _ in files if not (root / file).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is"
        where = f"in {root}" if root.is_dir() else f"in {root}, which does not exist"
        lead = f"data set {name!r} was looked for {where}: {missing[0]}{more} missing."
        holds = f"--data-dir DIR with a folder that holds {missing[0]}"
        if download:
            return f"{lead} Downloading it failed: {error}. Try again, or give {holds}"
        return f"{lead} Give {holds}, or fetch it with --set data.download=true"
    for file, md5 in files:
        fault = _fault(root / file, md5)
        if fault:
            lead = f"data set {name!r}: {root / file} is truncated or corrupt ({fault})."
            if download and md5:  # without an MD5 torchvision did not even try
                return f"{lead} Downloading it anew failed: {error}"
            return f"{lead} Delete it and fetch it again with --set data.download=true"
    return f"data set {name!r} in {root} cannot be read: {error}"


def _fault(path: Path, md5: str | None) -> str | None:
    """What is wrong with one file, or None."""
    from torchvision.datasets import mnist
    from torchvision.datasets.utils import check_integrity

    read: Callable[[str], object] = mnist.read_label_file if "labels" in path.name else mnist.read_image_file
    try:
        if md5 is None:
            read(str(path))
        elif not check_integrity(str(path), md5):
            return "its MD5 is not the published one"
    except Exception as error:  # whatever torchvision's reader raises on broken bytes
        return str(error).splitlines()[0] if str(error) else "not a whole IDX file"
    return None


@hookimpl
def rkd_datasets() -> dict[str, object]:
    return {source.name: source for source in (Mnist, FashionMnist, Cifar10, Cifar100, Svhn)}

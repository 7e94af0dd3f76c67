"""Data sets from tiny files in their real formats: whole, missing, truncated, corrupt and wrong ones.

With RKD_DATA=DIR the real MNIST (`DIR/MNIST/raw`) and `DIR/cifar10-jpg.tar.gz` are read too.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rkd.core.errors import ConfigError, DataError
from rkd.data.dataset import ArraySplit, Dataset, DatasetSource, Split
from rkd.plugin import statistics
from rkd.plugins.datasets import _common, digits, generated, imagefolder, npz
from rkd.plugins.datasets import torchvision as plugin
from rkd.plugins.datasets._common import HELD_OUT
from rkd.plugins.datasets.imagefolder import ImageFolder
from rkd.plugins.datasets.npz import Npz
from rkd.registry.hooks import Family

COLOURS = {"blue": (20, 40, 220), "green": (10, 200, 30), "red": (230, 15, 25)}


def every(split: Split) -> torch.Tensor:
    return split.images(torch.arange(len(split)))


def check(data: Dataset) -> None:
    """What holds for every data set."""
    assert isinstance(data, Dataset)
    assert len(data.fingerprint) == 16
    for split in (data.train, data.test):
        x = split.images(torch.tensor([len(split) - 1, 0]))
        assert x.shape == (2, *data.shape) and x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1
        assert split.labels.shape == (len(split),) and split.labels.dtype == torch.int64
    assert data.threat.eps == pytest.approx(4 * data.threat.step_size)
    assert all(std > 0 for std in data.std)


# --- digits -----------------------------------------------------------------------------------------------------


def test_digits_are_the_embedded_images_exactly():
    from sklearn.datasets import load_digits

    data = digits.Digits()()
    check(data)
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789")
    assert (len(data.train), len(data.test)) == (1438, 359)
    ink = torch.cat([every(data.train), every(data.test)]).mul(16).flatten(1)
    original = torch.tensor(load_digits().data, dtype=torch.float32)
    assert sorted(ink.tolist()) == sorted(original.tolist())
    assert data.mean == (0.3061,) and data.std == (0.3768,)
    assert data.threat.eps == 38 / 255 and data.threat.norm == "Linf"


def test_the_split_of_digits_is_fixed_and_stratified():
    data = digits.Digits()()
    counts, rest = data.test.labels.bincount(), data.train.labels.bincount()
    assert bool(((counts / (counts + rest) - 0.2).abs() < 0.003).all())
    torch.manual_seed(1)
    assert digits.Digits()().fingerprint == data.fingerprint
    # Numbers in papers and caches rest on this very split: it may never change.
    labels = torch.arange(1000) % 7
    train, test = _common.stratified(labels, 0.2)
    assert test[:8].tolist() == [4, 5, 7, 19, 21, 29, 33, 34]
    assert torch.cat([train, test]).sort().values.tolist() == list(range(1000))


# --- torchvision ------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """`array` uint8 in MNIST's own format."""
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def some(count: int, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 10


def write_mnist(root: Path, folder: str = "MNIST") -> dict[str, np.ndarray]:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    content = {}
    for prefix, count in (("train", 30), ("t10k", 12)):
        images, labels = some(count, 28, 28, seed=count)
        content |= {prefix: images, f"{prefix} labels": labels}
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
    return content


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "CIFAR10") -> dict[str, np.ndarray]:
    """Batches of 10 images each; torchvision is told their MD5s in place of the published ones."""
    from torchvision import datasets

    reader = getattr(datasets, name)
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    content: dict[str, list] = {}
    for attribute in ("train_list", "test_list"):
        listed = []
        for number, (file, _) in enumerate(getattr(reader, attribute)):
            images, labels = some(10, 3, 32, 32, seed=number)
            blob = pickle.dumps({"data": images.reshape(10, -1), key: labels.tolist()})
            (folder / file).write_bytes(blob)
            listed.append([file, hashlib.md5(blob).hexdigest()])
            content.setdefault(attribute, []).append(images)
        monkeypatch.setattr(reader, attribute, listed)
    names = [f"class-{number}" for number in range(10 if name == "CIFAR10" else 100)]
    blob = pickle.dumps({reader.meta["key"]: names})
    (folder / reader.meta["filename"]).write_bytes(blob)
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": hashlib.md5(blob).hexdigest()})
    return {attribute: np.concatenate(parts) for attribute, parts in content.items()}


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    from scipy.io import savemat
    from torchvision import datasets

    content, listed = {}, dict(datasets.SVHN.split_list)
    for part in ("train", "test"):
        images, labels = some(20, 32, 32, 3, seed=len(part))
        file = root / f"{part}_32x32.mat"
        # SVHN calls the digit 0 class 10
        savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype("u1")})
        listed[part] = [*listed[part][:2], hashlib.md5(file.read_bytes()).hexdigest()]
        content[part] = images.transpose(0, 3, 1, 2)
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return content


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_in_the_original_order(tmp_path, name, folder):
    content = write_mnist(tmp_path, folder)
    data = plugin.rkd_datasets()[name](dir=str(tmp_path))()
    check(data)
    assert data.name == name and data.shape == (1, 28, 28) and len(data.classes) == 10
    assert torch.equal(every(data.train).mul(255).round().byte()[:, 0], torch.from_numpy(content["train"]))
    assert torch.equal(every(data.test).mul(255).round().byte()[:, 0], torch.from_numpy(content["t10k"]))
    assert data.test.labels.tolist() == content["t10k labels"].tolist()


@pytest.mark.parametrize(("name", "reader"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_in_the_original_order(tmp_path, monkeypatch, name, reader):
    content = write_cifar(tmp_path, monkeypatch, reader)
    data = plugin.rkd_datasets()[name](dir=str(tmp_path))()
    check(data)
    assert data.shape == (3, 32, 32) and data.classes[3] == "class-3"
    assert torch.equal(every(data.train).mul(255).round().byte(), torch.from_numpy(content["train_list"]))
    assert torch.equal(every(data.test).mul(255).round().byte(), torch.from_numpy(content["test_list"]))
    assert data.train.labels[:10].tolist() == list(range(10))
    assert data.defaults["augments"] == {"crop": {"padding": 4}, "flip": {}}


def test_svhn_in_the_original_order(tmp_path, monkeypatch):
    content = write_svhn(tmp_path, monkeypatch)
    data = plugin.Svhn(dir=str(tmp_path))()
    check(data)
    assert data.shape == (3, 32, 32) and data.classes == tuple("0123456789")
    for split, part in ((data.train, "train"), (data.test, "test")):
        assert torch.equal(every(split).mul(255).round().byte(), torch.from_numpy(content[part]))
    assert data.train.labels.tolist() == [number % 10 for number in range(20)]


@pytest.mark.parametrize("name", plugin.rkd_datasets())
def test_missing_files_say_what_was_looked_for_and_what_to_type(tmp_path, name):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            plugin.rkd_datasets()[name](dir=str(root))()
        message = str(caught.value)
        assert repr(name) in message and str(root) in message
        assert "--data-dir DIR" in message and "--set data.download=true" in message
        assert "missing" in message
    assert not list(tmp_path.iterdir()), "something was written"


def test_the_default_folder_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    assert len(plugin.Mnist()().train) == 30


@pytest.mark.parametrize("name", plugin.rkd_datasets())
def test_a_download_that_fails_is_one_message(tmp_path, monkeypatch, name):
    def offline(*args, **kwargs):
        print("Downloading")  # as some releases of torchvision do
        raise OSError("no route to host")

    for module in ("mnist.download_and_extract_archive", "cifar.download_and_extract_archive", "svhn.download_url"):
        monkeypatch.setattr(f"torchvision.datasets.{module}", offline)
    with pytest.raises(DataError, match="no route to host") as caught:
        plugin.rkd_datasets()[name](dir=str(tmp_path), download=True)()
    assert "--data-dir DIR" in str(caught.value)


def test_a_download_is_torchvisions_and_keeps_stdout_clean(tmp_path, monkeypatch, capsys):
    """The archives lie where torchvision would put them, so it checks and unpacks them without a network."""
    from torchvision import datasets

    write_mnist(tmp_path)
    resources = []
    for url, _ in datasets.MNIST.resources:
        file = tmp_path / "MNIST" / "raw" / Path(url).stem
        archive = file.with_name(file.name + ".gz")
        archive.write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        resources.append((url, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    with pytest.raises(DataError, match="missing"):
        plugin.Mnist(dir=str(tmp_path))()
    assert len(plugin.Mnist(dir=str(tmp_path), download=True)().train) == 30
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "long"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_broken_mnist_file_is_named(tmp_path, file, damage):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / file
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-5], "empty": b"", "text": b"<html>404</html>", "long": whole + b"x"}[damage])
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        plugin.Mnist(dir=str(tmp_path))()
    assert "truncated or corrupt" in str(caught.value)


def test_mnist_with_too_few_or_wrong_labels(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(DataError, match="30 images but 7 labels"):
        plugin.Mnist(dir=str(tmp_path))()
    path.write_bytes(idx(np.full(30, 77, np.uint8)))
    with pytest.raises(DataError, match="label of data set 'mnist' is 77"):
        plugin.Mnist(dir=str(tmp_path))()


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_broken_cifar_file_is_named_and_not_unpickled(tmp_path, monkeypatch, file):
    write_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        plugin.Cifar10(dir=str(tmp_path))()
    assert "MD5" in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_cifar_batch_is_named(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py/data_batch_2 is missing"):
        plugin.Cifar10(dir=str(tmp_path))()


def test_a_broken_svhn_file_is_named(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=re.escape(str(path))):
        plugin.Svhn(dir=str(tmp_path))()


# --- imagefolder ------------------------------------------------------------------------------------------------


def write_folder(
    root: Path, count: int = 5, size: tuple[int, int] = (10, 10), suffix: str = "png", mode: str = "RGB"
) -> None:
    """`count` images a class, each of its class's colour with its number in one pixel."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", size, colour)
            image.putpixel((0, 0), (number, number, number))
            image.convert(mode).save(root / name / f"{number:03}.{suffix}")


def write_parts(root: Path, test: str = "test", **options) -> None:
    write_folder(root / "train", **options)
    write_folder(root / test, **{**options, "count": 2})


def pictures(data) -> list[torch.Tensor]:
    return [split.images(torch.arange(len(split))) for split in (data.train, data.test)]


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.npy"))


def test_decoded_once_and_kept(tmp_path, cache, monkeypatch):
    """The second time nothing is decoded, and all is as it was the first time."""
    write_parts(tmp_path / "data")
    first = ImageFolder(str(tmp_path / "data"))()
    assert len(kept(cache)) == 1 and first.notes == ()
    for name in ("_header", "FileSplit"):
        monkeypatch.setattr(imagefolder, name, None)
    again = ImageFolder(str(tmp_path / "data"))()
    check(again)
    assert all(map(torch.equal, pictures(again), pictures(first)))
    facts = ("shape", "classes", "mean", "std", "fingerprint", "threat")
    assert [getattr(again, name) for name in facts] == [getattr(first, name) for name in facts]
    batch_by_batch = ImageFolder(str(tmp_path / "data"), memory_mib=0.001)()
    assert not batch_by_batch.train.in_memory and all(map(torch.equal, pictures(batch_by_batch), pictures(first)))


def test_kept_images_are_those_of_the_files(tmp_path, cache):
    write_parts(tmp_path / "data")
    folder = str(tmp_path / "data")
    plain = pictures(ImageFolder(folder, cache_gib=0)())
    assert kept(cache) == []
    assert all(map(torch.equal, pictures(ImageFolder(folder)()), plain))
    ImageFolder(folder, size=8)()
    assert len(kept(cache)) == 2
    file = tmp_path / "data" / "train" / "red" / "000.png"
    content = file.read_bytes()
    Image.new("RGB", (10, 10), (1, 2, 3)).save(file)
    file.write_bytes(file.read_bytes().ljust(len(content), b"\0"))  # as long as before
    changed = ImageFolder(folder)()
    assert len(kept(cache)) == 3
    assert torch.equal(changed.train.images(torch.tensor([10]))[0, :, 5, 5] * 255, torch.tensor([1.0, 2, 3]))
    file.unlink()
    assert len(ImageFolder(folder)().train) == 14


def test_names_below_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, Path("."), Path("a"), Path("a/b")):
        files = [root / "train" / "x y.png", root / "test" / "a" / "b.png"]
        assert imagefolder._below(root, files) == [file.relative_to(root).as_posix() for file in files]


def test_images_that_cannot_be_kept(tmp_path, cache, monkeypatch):
    write_parts(tmp_path / "data")
    folder = str(tmp_path / "data")
    (note,) = ImageFolder(folder, cache_gib=1e-6)().notes
    assert "are not kept in the cache (data.cache_gib): they take" in note
    names = iter(["before", "after"])
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_name", lambda *_: next(names))
        (note,) = ImageFolder(folder)().notes
    assert "files changed while they were read" in note and kept(cache) == []
    (tmp_path / "data" / "test" / "red" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        ImageFolder(folder)()
    assert kept(cache) == []
    with pytest.raises(ConfigError, match="cache_gib"):
        ImageFolder(folder, cache_gib=-1)


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_with_both_parts(tmp_path, test):
    write_parts(tmp_path, test)
    data = ImageFolder(str(tmp_path))()
    check(data)
    assert data.classes == ("blue", "green", "red") and data.shape == (3, 10, 10)
    assert (len(data.train), len(data.test)) == (15, 6)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    x = every(data.train).mul(255).round().int()
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] * 3, "not in the order of the files"
    assert x[:, :, 5, 5].tolist() == [list(COLOURS[data.classes[label]]) for label in data.train.labels]
    expected = torch.tensor(list(COLOURS.values())).double().mean(0) / 255
    assert data.mean == pytest.approx(expected.tolist(), abs=0.01)
    assert (data.threat.eps, data.threat.step_size) == (8 / 255, 2 / 255)


def test_test_wins_over_val(tmp_path):
    write_parts(tmp_path, "test")
    write_folder(tmp_path / "val", count=1)
    data = ImageFolder(str(tmp_path))()
    assert len(data.test) == 6
    assert data.notes == (f"{tmp_path}: left out, beside train/ and test/: val; {HELD_OUT}",)


def test_a_folder_of_classes_is_split_the_same_way_every_time(tmp_path):
    write_folder(tmp_path, count=10)
    data = ImageFolder(str(tmp_path))()
    check(data)
    assert data.train.labels.bincount().tolist() == [8, 8, 8]
    assert data.test.labels.bincount().tolist() == [2, 2, 2]
    torch.manual_seed(5)
    again = ImageFolder(str(tmp_path))()
    assert torch.equal(every(data.test), every(again.test)) and data.fingerprint == again.fingerprint
    together = torch.cat([every(data.train), every(data.test)]).flatten(1)
    assert len(together.unique(dim=0)) == 30, "an image is in both parts"


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "webp", "gif", "tiff", "ppm"])
def test_many_formats(tmp_path, suffix):
    write_parts(tmp_path, suffix=suffix)
    data = ImageFolder(str(tmp_path))()
    assert len(data.train) == 15 and data.shape == (3, 10, 10)


@pytest.mark.parametrize("memory_mib", [2048, 0])
@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_images_have_one_channel(tmp_path, mode, memory_mib):
    write_parts(tmp_path, mode=mode)
    data = ImageFolder(str(tmp_path), memory_mib=memory_mib)()
    check(data)
    assert data.shape == (1, 10, 10) and len(data.mean) == 1
    assert "flip" not in data.defaults["augments"]


def test_one_image_in_colour_makes_three_channels(tmp_path):
    write_parts(tmp_path, mode="L")
    Image.new("RGBA", (10, 10), (1, 2, 3, 200)).save(tmp_path / "test" / "red" / "001.png")
    data = ImageFolder(str(tmp_path))()
    assert data.shape == (3, 10, 10)
    assert every(data.test)[-1, :, 0, 0].mul(255).round().tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", [None, 7, 16])
@pytest.mark.parametrize("side", [10, 120])  # the larger ones are decoded by threads
def test_decoding_by_batches_equals_decoding_into_memory(tmp_path, monkeypatch, size, side):
    monkeypatch.setattr(imagefolder, "THREADS", 3)
    write_parts(tmp_path, count=12, size=(side, side), suffix="jpg")
    memory = ImageFolder(str(tmp_path), size=size)()
    lazy = ImageFolder(str(tmp_path), size=size, memory_mib=0)()
    check(lazy)
    assert isinstance(memory.train, ArraySplit) and isinstance(lazy.train, imagefolder.FileSplit)
    assert torch.equal(every(memory.train), every(lazy.train))
    index = torch.tensor([30, 2, 2, 17])
    assert torch.equal(memory.train.images(index), lazy.train.images(index))
    assert (memory.mean, memory.std, memory.fingerprint) == (lazy.mean, lazy.std, lazy.fingerprint)


@pytest.mark.parametrize("shape", [(31, 20), (20, 31), (9, 9), (8, 8), (101, 8)])
def test_sizes_are_torchvisions(tmp_path, shape):
    from torchvision import transforms

    generator = np.random.default_rng(0)
    for part in ("train/a", "test/a", "train/b"):
        (tmp_path / part).mkdir(parents=True)
        pixels = generator.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / part / "0.png")
    data = ImageFolder(str(tmp_path), size=8)()
    whole = transforms.Compose([transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()])
    assert torch.equal(every(data.test)[0], whole(Image.open(tmp_path / "test" / "a" / "0.png")))


@pytest.mark.parametrize("memory_mib", [2048, 0])
def test_different_sizes_need_a_size(tmp_path, memory_mib):
    write_parts(tmp_path)
    odd = tmp_path / "test" / "green" / "001.png"
    Image.new("RGB", (12, 9)).save(odd)
    with pytest.raises(DataError, match=r"--set data\.size=9") as caught:
        ImageFolder(str(tmp_path), memory_mib=memory_mib)()
    assert str(odd) in str(caught.value) and "12x9" in str(caught.value)
    assert ImageFolder(str(tmp_path), size=9, memory_mib=memory_mib)().shape == (3, 9, 9)


def test_unreadable_images_are_all_named(tmp_path):
    write_parts(tmp_path, count=40, size=(40, 40), suffix="jpg")
    cut, text = tmp_path / "train" / "green" / "003.jpg", tmp_path / "train" / "red" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    text.write_text("not an image")
    with pytest.raises(DataError) as caught:
        ImageFolder(str(tmp_path))()
    assert str(cut) in str(caught.value) and str(text) in str(caught.value)
    assert "\n" not in str(caught.value)
    for file in (tmp_path / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        ImageFolder(str(tmp_path))()


def test_an_image_that_breaks_later_is_named(tmp_path):
    write_parts(tmp_path)
    data = ImageFolder(str(tmp_path), memory_mib=0)()
    broken = tmp_path / "train" / "blue" / "004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert len(data.train.images(torch.tensor([0, 1]))) == 2
    with pytest.raises(DataError, match=re.escape(str(broken))):
        data.train.images(torch.tensor([0, 4]))


def test_sixteen_bits_are_refused(tmp_path):
    write_parts(tmp_path)
    file = tmp_path / "train" / "blue" / "002.png"
    Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(file)
    with pytest.raises(DataError, match="8 bits") as caught:
        ImageFolder(str(tmp_path))()
    assert str(file) in str(caught.value)


def test_other_files_and_hidden_ones_are_left_out(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "train" / "red" / "._001.png").write_bytes(b"made by some file manager")
    (tmp_path / "train" / "red" / "notes.txt").write_text("hello")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "red" / "deeper").mkdir()
    Image.new("RGB", (10, 10)).save(tmp_path / "train" / "red" / "deeper" / "x.png")
    data = ImageFolder(str(tmp_path))()
    assert len(data.train) == 16 and len(data.classes) == 3


def test_the_fingerprint_follows_the_data(tmp_path):
    write_parts(tmp_path)
    prints = [ImageFolder(str(tmp_path))().fingerprint, ImageFolder(str(tmp_path), size=8)().fingerprint]
    Image.new("RGB", (10, 10), (7, 7, 7)).save(tmp_path / "train" / "red" / "002.png")
    prints.append(ImageFolder(str(tmp_path))().fingerprint)
    (tmp_path / "train" / "red").rename(tmp_path / "train" / "yellow")
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "yellow")
    prints.append(ImageFolder(str(tmp_path))().fingerprint)
    assert len(set(prints)) == 4


def test_large_images_get_the_smaller_ball(tmp_path):
    write_parts(tmp_path, size=(65, 65), count=2)
    assert ImageFolder(str(tmp_path))().threat.eps == 4 / 255
    assert ImageFolder(str(tmp_path), size=64)().threat.eps == 8 / 255


def test_dir_is_where_a_relative_path_starts(tmp_path):
    write_parts(tmp_path / "here")
    assert ImageFolder("here", dir=str(tmp_path))().name == "imagefolder:here"
    assert len(ImageFolder(str(tmp_path / "here"), dir="elsewhere")().train) == 15


def broken_folders(root: Path):
    """(folder, what the message must say) of each kind of wrong folder."""
    yield root / "nowhere", "does not exist"
    (root / "file.zip").write_bytes(b"PK")
    yield root / "file.zip", "is a file"
    (root / "empty").mkdir()
    yield root / "empty", "holds no folders"
    write_folder(root / "no test" / "train")
    yield root / "no test", "holds train/"
    write_folder(root / "no train" / "val")
    yield root / "no train", "holds val/"
    write_parts(root / "extra")
    (root / "extra" / "test" / "red").rename(root / "extra" / "test" / "rad")
    yield root / "extra", "rad"
    write_parts(root / "hollow")
    (root / "hollow" / "train" / "void").mkdir()
    yield root / "hollow", "void"
    write_folder(root / "single", count=1)
    yield root / "single", "test part .* is empty"


def test_wrong_folders(tmp_path):
    for folder, says in broken_folders(tmp_path):
        with pytest.raises(DataError, match=says) as caught:
            ImageFolder(str(folder))()
        assert str(folder) in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.size"):
        ImageFolder(str(tmp_path), size=0)


# --- npz --------------------------------------------------------------------------------------------------------


def arrays(*shape: int, count: int = 20, classes: int = 4) -> dict[str, np.ndarray]:
    train, test = some(count, *shape)[0], some(6, *shape, seed=1)[0]
    return {
        "x_train": train,
        "y_train": np.arange(count) % classes,
        "x_test": test,
        "y_test": np.arange(6) % classes,
    }


def saved(tmp_path: Path, **content: np.ndarray) -> str:
    np.savez(tmp_path / "data.npz", **content)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_layouts_and_types_mean_the_same_images(tmp_path, layout, kind):
    content = arrays(5, 7, 1 if layout == "NHW" else 3)
    expected = torch.from_numpy(content["x_train"]).permute(0, 3, 1, 2)
    for name in ("x_train", "x_test"):
        x = content[name].transpose(0, 3, 1, 2) if layout == "NCHW" else content[name]
        x = x[..., 0] if layout == "NHW" else x
        content[name] = x if kind is np.uint8 else (x / 255).astype(kind)
    data = Npz(saved(tmp_path, **content))()
    check(data)
    assert data.shape == expected.shape[1:] and data.classes == ("0", "1", "2", "3")
    assert torch.allclose(every(data.train), expected.float() / 255, atol=1e-3 if kind == np.float16 else 1e-7)
    assert data.train.labels.tolist() == content["y_train"].tolist()


def test_npz_keeps_floats_that_are_no_bytes(tmp_path):
    content = arrays(4, 4, 1)
    content |= {name: content[name] / np.float32(300) for name in ("x_train", "x_test")}
    data = Npz(saved(tmp_path, **content))()
    assert torch.equal(every(data.test), torch.from_numpy(content["x_test"]).permute(0, 3, 1, 2))


def test_npz_fingerprint_does_not_depend_on_the_type(tmp_path):
    content = arrays(4, 4)
    first = Npz(saved(tmp_path, **content))()
    content |= {name: (content[name] / 255).astype(np.float32) for name in ("x_train", "x_test")}
    assert Npz(saved(tmp_path, **content))().fingerprint == first.fingerprint
    content["y_test"] = content["y_test"][::-1]
    assert Npz(saved(tmp_path, **content))().fingerprint != first.fingerprint


def test_npz_ambiguous_layouts_need_the_option(tmp_path):
    for shape, says in (((3, 8, 3), "both axis 1 and the last"), ((8, 8, 4), "neither axis 1 nor the last")):
        path = saved(tmp_path, **arrays(*shape))
        with pytest.raises(DataError, match=says) as caught:
            Npz(path)()
        assert "data.layout=NHWC" in str(caught.value)
        assert Npz(path, layout="NHWC")().shape == (shape[2], shape[0], shape[1])
        assert Npz(path, layout="NCHW")().shape == shape


def test_npz_classes(tmp_path):
    path = saved(tmp_path, **arrays(4, 4))
    assert len(Npz(path, num_classes=9)().classes) == 9
    assert Npz(path, classes=["a", "b", "c", "d"])().classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="label 3, but there are 2 classes"):
        Npz(path, classes=["a", "b"])()
    with pytest.raises(ConfigError, match="num_classes"):
        Npz(path, classes=["a", "b"], num_classes=3)


def test_npz_labels_may_be_a_column(tmp_path):
    content = arrays(4, 4)
    content["y_train"] = content["y_train"][:, None].astype(np.uint8)
    assert Npz(saved(tmp_path, **content))().train.labels.shape == (20,)


def test_npz_dir_is_where_a_relative_path_starts(tmp_path):
    saved(tmp_path, **arrays(4, 4))
    assert Npz("data.npz", dir=str(tmp_path))().name == "npz:data.npz"


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(np.float32) / 255
    array.flat[7] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("x_train", lambda a: a.astype(np.int64), "x_train must be uint8"),
        ("x_train", lambda a: a.astype(np.float32), "x_train: .*divide 8-bit images by 255"),
        ("x_test", lambda a: with_value(a, np.nan), "x_test: .*NaN"),
        ("x_test", lambda a: with_value(a, np.inf), "x_test: .*NaN or infinity"),
        ("x_train", lambda a: with_value(a, -0.5), r"x_train: .*\[0, 1\]"),
        ("x_train", lambda a: a.reshape(20, -1), "x_train must be"),
        ("x_train", lambda a: np.float32(0.5), "x_train must be"),
        ("x_train", lambda a: a[:, :0], "no pixels"),
        ("x_train", lambda a: a[:-1], "19 images, but y_train 20 labels"),
        ("x_test", lambda a: a[:, 1:], "differ in shape"),
        ("x_test", lambda a: a[:0], "no pixels"),
        ("x_train", lambda a: a.astype(object), "x_train cannot be read"),
        ("y_train", lambda a: a.astype(float), "y_train must hold integers"),
        ("y_train", lambda a: np.eye(4)[a], "y_train must hold integers"),
        ("y_train", lambda a: a.astype(str), "y_train must hold integers"),
        ("y_train", lambda a: a - 1, "y_train holds the label -1"),
        ("y_train", lambda a: a + 10**9, "without gaps"),
        ("y_test", lambda a: a + 4, "y_test holds the label 7"),
        ("y_test", lambda a: a[:0], "y_test is empty"),
    ],
)
def test_npz_wrong_arrays(tmp_path, name, change, says):
    content = arrays(4, 4)
    content[name] = change(content[name])
    path = saved(tmp_path, **content)
    with pytest.raises(DataError, match=says) as caught:
        Npz(path)()
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_npz_files_that_are_none(tmp_path):
    whole = Path(saved(tmp_path, **arrays(12, 12)))
    wrong = {
        "missing.npz": None,
        "cut.npz": whole.read_bytes()[:-40],
        "text.npz": b"hello",
        "empty.npz": b"",
        "pickle.npz": pickle.dumps({"x_train": 1}),
        "flipped.npz": bytes(byte ^ (255 if 500 < place < 700 else 0) for place, byte in enumerate(whole.read_bytes())),
    }
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "lacking.npz", x_train=np.zeros(3), images=np.zeros(2))
    for name, content in wrong.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    for name in [*wrong, "one.npy", "lacking.npz", "."]:
        with pytest.raises(DataError) as caught:
            Npz(str(tmp_path / name))()
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="lacks y_train, x_test, y_test; the arrays there: x_train, images"):
        Npz(str(tmp_path / "lacking.npz"))()


# --- all --------------------------------------------------------------------------------------------------------


def test_the_hooks_give_described_components():
    found = {}
    for module in (digits, plugin, generated, imagefolder, npz):
        found |= module.rkd_datasets()
    assert sorted(found) == [
        *(
            "cifar10",
            "cifar100",
            "digits",
            "fashion-mnist",
            "generated:PATH",
            "imagefolder:PATH",
            "mnist",
            "npz:PATH",
            "svhn",
        ),
    ]
    for name, component in found.items():
        if isinstance(component, Family):
            options = re.fullmatch(component.pattern, name.replace("PATH", "some/path:with colon")).groupdict()
            assert options == {"path": "some/path:with colon"}
            component = component.component
        else:
            options = {}
        source = component(**options)
        assert isinstance(source, DatasetSource) and source.dir is None and source.download is False
        assert component.__doc__.strip().splitlines()[0].endswith(".")


def test_a_constant_channel_does_not_divide_by_zero():
    mean, std = statistics(ArraySplit(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(3)), (1, 2, 2))
    assert (mean, std) == ((0.2,), (1.0,))


@pytest.mark.slow
def test_plugins_are_cheap_to_import():
    """Naming the data sets may not cost the import of torchvision, scikit-learn or PIL."""
    names = "digits, torchvision, generated, imagefolder, npz"
    code = (
        f"from rkd.plugins.datasets import {names}\nimport sys\n"
        "sys.exit(' '.join(m for m in ('torchvision', 'sklearn', 'PIL', 'scipy') if m in sys.modules) or 0)"
    )
    source = str(Path(plugin.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": source}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


REAL = os.environ.get("RKD_DATA")


@pytest.mark.skipif(not REAL, reason="RKD_DATA is not set")
def test_the_real_mnist():
    data = plugin.Mnist(dir=REAL)()
    check(data)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9] and data.test.labels[:3].tolist() == [7, 2, 1]
    mean, std = statistics(data.train, data.shape, limit=60_000)
    assert mean == pytest.approx(data.mean, abs=1e-4) and std == pytest.approx(data.std, abs=1e-4)


@pytest.mark.skipif(not REAL, reason="RKD_DATA is not set")
@pytest.mark.slow
def test_the_real_cifar10_as_jpegs(tmp_path):
    with tarfile.open(Path(REAL) / "cifar10-jpg.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    data = ImageFolder(str(tmp_path))()
    check(data)
    assert (len(data.train), len(data.test)) == (50_000, 10_000) and data.shape == (3, 32, 32)
    assert data.classes[0] == "airplane" and data.test.labels.bincount().tolist() == [1000] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)


# Image folders that are not what they seem


def test_a_folder_one_level_too_high_is_refused(tmp_path):
    write_folder(tmp_path / "my zip" / "dataset")
    with pytest.raises(DataError, match=r"one folder, dataset/.*blue, green, red look like") as said:
        ImageFolder("my zip", dir=str(tmp_path))()
    option, name = shlex.split(str(said.value).partition("type ")[2])
    assert option == "--dataset" and ImageFolder(name.partition(":")[2], dir=str(tmp_path))().classes
    for part in ("train", "test"):
        write_folder(tmp_path / "parts" / part / "dataset")
    with pytest.raises(DataError, match=r"move them to .*parts/train$"):  # its path would leave the test images out
        ImageFolder(str(tmp_path / "parts"))()


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("train", "valid"), ("TRAIN", "dev")])
def test_usual_names_of_the_parts(tmp_path, names):
    for name in names:
        write_folder(tmp_path / name, count=2)
    data = ImageFolder(str(tmp_path))()
    assert data.classes == ("blue", "green", "red") and len(data.test) == 6 and data.notes == ()


def test_unusual_names_of_the_parts_are_refused_by_name(tmp_path):
    for name in ("learn", "check"):
        write_folder(tmp_path / name, count=2)
    with pytest.raises(DataError, match=r"check/, learn/, each with the folders blue, green, red.*data\.classes"):
        ImageFolder(str(tmp_path))()
    assert ImageFolder(str(tmp_path), classes=["learn", "check"])().classes == ("learn", "check")


def test_two_folders_for_one_part(tmp_path):
    for name in ("train", "Training", "test"):
        write_folder(tmp_path / name, count=2)
    with pytest.raises(DataError, match=r"Training/ and train/: which one is meant"):
        ImageFolder(str(tmp_path))()


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "blue").rename(tmp_path / "train")
    assert ImageFolder(str(tmp_path))().classes == ("green", "red", "train")


def test_what_is_left_out_is_counted(tmp_path):
    write_parts(tmp_path)
    for name in ("train/red/a.heic", "train/red/b.HEIC", "test/red/c.jfif", "train/readme", "train/red/.hidden"):
        (tmp_path / name).touch()
    (tmp_path / "notes").mkdir()
    counted, beside = ImageFolder(str(tmp_path))().notes
    assert "4 files are left out (2 .heic, 1 without ending, 1 .jfif)" in counted
    assert "notes" in beside


def test_a_class_without_a_test_image_is_told(tmp_path):
    from rkd.data.dataset import gaps

    write_parts(tmp_path)
    shutil.rmtree(tmp_path / "test" / "green")
    (tmp_path / "test" / "green").mkdir()
    (said,) = gaps(ImageFolder(str(tmp_path))())
    assert "1 of 3 classes have no test image: green" in said


def test_classes_of_a_folder_by_name(tmp_path):
    write_parts(tmp_path)
    data = ImageFolder(str(tmp_path), classes=["red", "blue"])()
    assert data.classes == ("red", "blue") and (len(data.train), len(data.test)) == (10, 4)
    with pytest.raises(DataError, match="no folder for the class pink; it has blue, green, red"):
        ImageFolder(str(tmp_path), classes=["red", "pink"])()


def test_classes_from_a_file(tmp_path):
    write_parts(tmp_path / "data")
    (tmp_path / "names.txt").write_text("red\nblue\n\n")
    assert ImageFolder("data", classes="names.txt", dir=str(tmp_path))().classes == ("red", "blue")
    with pytest.raises(DataError, match=r"data\.classes: .*nowhere is no file"):
        ImageFolder("data", classes="nowhere", dir=str(tmp_path))()


def test_resize_and_centre_crop_are_torchvisions(tmp_path):
    from torchvision import transforms

    generator = np.random.default_rng(0)
    for part in ("train/a", "test/a", "train/b"):
        (tmp_path / part).mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (41, 30, 3), dtype=np.uint8)).save(tmp_path / part / "0.png")
    data = ImageFolder(str(tmp_path), size=14, resize=16)()
    whole = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.ToTensor()])
    assert torch.equal(every(data.test)[0], whole(Image.open(tmp_path / "test" / "a" / "0.png")))
    assert data.fingerprint != ImageFolder(str(tmp_path), size=14)().fingerprint
    for size in (None, 20):
        with pytest.raises(ConfigError, match=r"data\.resize needs a smaller data\.size"):
            ImageFolder(str(tmp_path), size=size, resize=16)


def test_exif_orientation_is_an_option(tmp_path):
    write_parts(tmp_path, suffix="jpg")
    file = min((tmp_path / "train" / "red").iterdir())
    pixels = np.zeros((10, 10, 3), dtype=np.uint8)
    pixels[:5] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 3  # turned by half
    image.save(file, exif=exif, quality=100)
    place = 10  # the first of the third class
    top = [float(ImageFolder(str(tmp_path), exif=exif)().train.images(torch.tensor([place]))[0, 0, 0].mean())
           for exif in (False, True)]  # fmt: skip
    assert top[0] > 0.9 and top[1] < 0.1


def test_arrays_of_medmnist_and_others(tmp_path):
    images, labels = np.full((6, 4, 4), 200, np.uint8), np.arange(6)[:, None].astype(np.uint8) % 2
    parts = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "med.npz", val_images=images, val_labels=labels, **parts)
    data = Npz(str(tmp_path / "med.npz"))()
    assert len(data.train) == 6
    assert data.notes == (f"{tmp_path}/med.npz: left out: val_images, val_labels; {HELD_OUT}",)
    np.savez(tmp_path / "own.npz", a=images, b=labels, c=images, d=labels)
    assert Npz(str(tmp_path / "own.npz"), arrays=["a", "b", "c", "d"])().classes == ("0", "1")
    with pytest.raises(DataError, match=r"lacks x_train.*--set data\.arrays"):
        Npz(str(tmp_path / "own.npz"))()
    with pytest.raises(ConfigError, match="four names"):
        Npz(str(tmp_path / "own.npz"), arrays=["a"])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_images_that_do_not_fit_into_memory_stay_in_their_file(layout: str, tmp_path, monkeypatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 3, 6, 5), np.uint8)
    stored = images.transpose(0, 2, 3, 1) if layout == "NHWC" else images
    arrays = {"x_train": stored, "y_train": np.arange(8) % 2, "x_test": stored[:4], "y_test": np.arange(4) % 2}
    np.savez(tmp_path / "d.npz", **arrays)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    np.savez(tmp_path / "floats.npz", **arrays | {"x_train": stored / 255, "x_test": stored[:4] / 255})
    usual = Npz(str(tmp_path / "d.npz"), layout=layout)()
    monkeypatch.setattr(npz, "free_memory", lambda: 400)
    mapped = Npz(str(tmp_path / "d.npz"), layout=layout)()
    index = torch.tensor([3, 0, 7])
    assert torch.equal(mapped.train.images(index), usual.train.images(index))
    assert (mapped.fingerprint, mapped.mean) == (usual.fingerprint, usual.mean)
    for name, words in (("small.npz", "numpy.savez, which does not compress"), ("floats.npz", "uint8")):
        with pytest.raises(DataError, match=words):
            Npz(str(tmp_path / name), layout=layout)()


def test_a_folder_is_kept_in_half_of_the_free_memory(tmp_path, monkeypatch) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), number).save(tmp_path / name / f"{number}.png")
    assert ImageFolder(str(tmp_path))().train.in_memory
    monkeypatch.setattr(imagefolder, "free_memory", lambda: 2 * 6 * 3 * 64 - 2)
    assert not ImageFolder(str(tmp_path))().train.in_memory


def test_parts_without_class_folders_are_no_classes(tmp_path):
    for part in ("Train", "test"):
        (tmp_path / part).mkdir()
        for n in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / part / f"{n}.png")
    with pytest.raises(DataError, match=r"Train/ and test/, parts of a data set .* no folder per class"):
        ImageFolder(str(tmp_path))()
    assert ImageFolder(str(tmp_path), classes=["Train", "test"])().classes == ("Train", "test")


@pytest.mark.parametrize(("kind", "place"), [(plugin.Cifar10, "cifar-10-batches-py/data_batch_1"),
                                             (plugin.Mnist, "MNIST/raw/train-images-idx3-ubyte")])  # fmt: skip
def test_a_fifo_in_the_place_of_a_published_file(tmp_path, kind, place):
    (tmp_path / place).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / place)
    with pytest.raises(DataError, match="is no file, but a folder, a FIFO or a device"):
        kind(dir=str(tmp_path))()


def test_npz_of_bytes_that_go_to_one_alone(tmp_path):
    images, labels = np.arange(32, dtype=np.uint8).reshape(8, 1, 2, 2) % 2, np.arange(8) % 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match="8-bit images go from 0 to 255, and these to 1"):
        Npz(str(tmp_path / "a.npz"))()

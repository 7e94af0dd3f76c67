"""Accuracy under corruptions against known answers, and what is said of files of another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rkd.core.errors import DataError, RkdError
from rkd.core.random import Noise, key
from rkd.data.dataset import ArraySplit
from rkd.evaluation.corruptions import BENCHMARK, OWN, corrupted_accuracy, corrupted_files_accuracy, open_corrupted
from rkd.evaluation.samples import EvalSettings, choose_samples
from rkd.testing import tiny_batch, tiny_net, untouched


class Bright(nn.Module):
    """Class 1 for images brighter than one half, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack([0.5 - bright, bright - 0.5], 1)


def greys(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def darker(x: Tensor, severity: int, noise: Noise) -> Tensor:
    return (x - 0.1 * severity).clamp(0, 1)


def noisy(x: Tensor, severity: int, noise: Noise) -> Tensor:
    return (x + 0.15 * severity * noise.normal(x.shape[1:])).clamp(0, 1)


def test_a_known_answer() -> None:
    """Images at 0.55, 0.75, 0.85 and 0.95: each step of 0.1 takes from the right ones those that fall below a half."""
    split = ArraySplit(greys(140, 191, 217, 242), torch.ones(4))
    result = corrupted_accuracy(Bright(), split, {"darker": darker, "same": lambda x, severity, noise: x})
    assert result == {
        "source": OWN,
        "accuracy": {"darker": [0.75, 0.75, 0.5, 0.25, 0.0], "same": [1.0] * 5},
        "mean": pytest.approx((2.25 + 5) / 10),
        "samples": 4,
    }
    assert OWN == "rkd's own corruptions, not CIFAR-10-C"


def labelled(count: int = 40) -> tuple[nn.Module, ArraySplit]:
    net = tiny_net()
    x = tiny_batch(count, seed=4).x
    with torch.no_grad():
        return net, ArraySplit(x, net.eval()(x).argmax(1))


def test_a_plain_loop_says_the_same() -> None:
    net, split = labelled()
    result = corrupted_accuracy(net, split, {"noisy": noisy}, EvalSettings(seed=7, limit=30, batch_size=11))
    chosen = choose_samples(len(split), 30).tolist()
    expected = []
    for severity in range(1, 6):
        right = 0
        for place in chosen:
            index = torch.tensor([place])
            x = noisy(split.images(index), severity, Noise(key(7, "corruption", "noisy", severity), index))
            right += int(net(x).argmax(1) == split.labels[place])
        expected.append(right / 30)
    assert result["accuracy"] == {"noisy": expected}
    assert expected[4] < expected[0], "the noise changes something: else the test shows nothing"
    assert result["samples"] == 30


def test_batches_and_repeats_change_nothing_and_the_seed_does() -> None:
    net, split = labelled()
    first, again, other = (
        corrupted_accuracy(net, split, {"noisy": noisy}, EvalSettings(seed=seed, batch_size=size))
        for seed, size in ((1, 3), (1, 256), (2, 256))
    )
    assert first == again != other


def test_the_net_is_left_as_it_was() -> None:
    net, split = labelled()
    net.train()
    told: list[tuple[str, int, int]] = []
    with untouched(net):
        corrupted_accuracy(
            net, split, {"noisy": noisy}, EvalSettings(batch_size=16, progress=lambda *news: told.append(news))
        )
        with pytest.raises(ZeroDivisionError):
            corrupted_accuracy(net, split, {"broken": lambda x, severity, noise: 1 / 0})
    assert told == [("noisy", done, 40) for done in (0, 16, 32, 40)]


@pytest.mark.parametrize(
    ("corruption", "problem"),
    [
        (lambda x, severity, noise: x[:, :, 1:], "'c' at severity 1 returned torch.float32 (40, 3, 7, 8)"),
        (lambda x, severity, noise: x.double(), "'c' at severity 1 returned torch.float64"),
        (lambda x, severity, noise: x + severity // 4, "'c' at severity 4: images must lie in [0, 1]"),
    ],
)
def test_a_broken_corruption(corruption, problem: str) -> None:
    net, split = labelled()
    with pytest.raises(RkdError) as error:
        corrupted_accuracy(net, split, {"c": corruption})
    assert problem in str(error.value)


def test_nothing_to_do_and_labels_that_the_net_does_not_know() -> None:
    net, split = labelled()
    with pytest.raises(RkdError, match="no corruption"):
        corrupted_accuracy(net, split, {})
    with pytest.raises(DataError, match="a label is 3, but the net knows 2 classes"):
        corrupted_accuracy(Bright(), ArraySplit(greys(1, 2), torch.tensor([0, 3])), {"darker": darker})


# Files


def folder(path: Path, names: tuple[str, ...] = BENCHMARK, **arrays: np.ndarray) -> Path:
    """Four images a severity, at 0.95, 0.85, 0.75, 0.55 of white and darker by 0.1 a severity; all of class 1."""
    path.mkdir()
    levels = np.array([[round(255 * (start - 0.1 * s)) for start in (0.95, 0.85, 0.75, 0.55)] for s in range(1, 6)])
    images = np.broadcast_to(levels.reshape(20, 1, 1, 1), (20, 8, 8, 3)).astype(np.uint8)
    for name in names:
        np.save(path / f"{name}.npy", arrays.get(name, images))
    np.save(path / "labels.npy", arrays.get("labels", np.ones(20, np.uint8)))
    return path


def test_a_folder_of_files(tmp_path: Path) -> None:
    flat = np.full((20, 8, 8, 3), 200, np.uint8)
    place = folder(tmp_path / "CIFAR-10-C", fog=flat)
    np.save(place / "speckle_noise.npy", 0 * flat)  # not among the fifteen: no part of the mean
    result = corrupted_files_accuracy(Bright(), place, EvalSettings(batch_size=3))
    dark = [0.75, 0.75, 0.5, 0.25, 0.0]
    assert result["source"] == "CIFAR-10-C"
    assert result["samples"] == 4
    assert result["accuracy"] == {name: [1.0] * 5 if name == "fog" else dark for name in BENCHMARK}
    assert result["mean"] == pytest.approx((14 * 2.25 + 5) / 75)
    assert len(BENCHMARK) == 15
    only = corrupted_files_accuracy(Bright(), place, names=["speckle_noise"])
    assert (only["accuracy"], only["mean"]) == ({"speckle_noise": [0.0] * 5}, 0.0)


def test_colour_rows_and_columns_arrive_as_they_were(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 9, 3), np.uint8)
    files = open_corrupted(folder(tmp_path / "c", ("fog",), fog=images, labels=np.arange(10) % 2), ["fog"], (3, 6, 9))
    found = files.images("fog", 3, torch.tensor([1, 0]))
    assert found.shape == (2, 3, 6, 9)
    assert float(found[0, 2, 4, 7]) == pytest.approx(images[5, 4, 7, 2] / 255)
    assert files.labels.tolist() == [0, 1]
    assert isinstance(files.arrays["fog"], np.memmap), "read when it is asked for"


def test_a_limit_takes_the_same_images_of_each_severity(tmp_path: Path) -> None:
    levels = np.tile(np.array([250, 10, 250, 10, 10, 10], np.uint8), 5)
    images = np.broadcast_to(levels.reshape(30, 1, 1, 1), (30, 8, 8, 1))
    place = folder(tmp_path / "c", ("fog",), fog=images, labels=np.ones(30, np.int64))
    result = corrupted_files_accuracy(Bright(), place, EvalSettings(limit=3), names=["fog"])
    bright = [bool(levels[row] == 250) for row in choose_samples(6, 3).tolist()]
    assert result["samples"] == 3
    assert result["accuracy"]["fog"] == [sum(bright) / 3] * 5
    with pytest.raises(DataError, match="between 1 and 6"):
        corrupted_files_accuracy(Bright(), place, EvalSettings(limit=7), names=["fog"])


ONES = np.ones(20, np.int64)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"snow": np.zeros((20, 8, 8, 3), np.float32)}, "snow.npy holds float32 of shape (20, 8, 8, 3); expected uint8"),
    ({"snow": np.zeros((20, 3, 8, 8), np.uint8)}, "snow.npy holds uint8 of shape (20, 3, 8, 8); expected images"),
    ({"snow": np.zeros((20, 64), np.uint8)}, "snow.npy holds uint8 of shape (20, 64); expected uint8 images (5N,"),
    ({"snow": np.zeros((15, 8, 8, 3), np.uint8)}, "expected 20 images, one for each label in labels.npy"),
    ({"snow": np.zeros((20, 9, 8, 3), np.uint8)}, "expected images (H, W, C) = (8, 8, 3), which the net takes"),
    ({"labels": np.ones(18, np.int64)}, "labels.npy holds int64 of shape (18,); expected integers (5N,)"),
    ({"labels": np.ones((20, 1), np.int64)}, "labels.npy holds int64 of shape (20, 1)"),
    ({"labels": np.ones(20)}, "labels.npy holds float64"),
    ({"labels": 2 * ONES}, "labels.npy holds the label 2; expected classes from 0 to 1"),
    ({"labels": -ONES}, "labels.npy holds the label -1"),
    ({"labels": np.arange(20) % 2 * (np.arange(20) > 3)}, "the five fifths of the labels differ"),
    ({"labels": np.array([None] * 20, dtype=object)}, "labels.npy is not a whole .npy file of numbers"),
]


@pytest.mark.parametrize(("arrays", "problem"), WRONG, ids=[problem for _, problem in WRONG])
def test_files_of_another_form(tmp_path: Path, arrays: dict[str, np.ndarray], problem: str) -> None:
    place = folder(tmp_path / "c", **arrays)
    with pytest.raises(DataError) as error:
        corrupted_files_accuracy(Bright(), place, EvalSettings(classes=2), shape=(3, 8, 8))
    assert problem in str(error.value)
    assert str(place) in str(error.value)


def test_files_that_differ_where_nothing_else_is_known(tmp_path: Path) -> None:
    place = folder(tmp_path / "c", fog=np.zeros((20, 9, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"fog.npy .*expected the shape of gaussian_noise.npy, \(20, 8, 8, 3\)"):
        open_corrupted(place)


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        open_corrupted(tmp_path / "nowhere")
    place = folder(tmp_path / "c", ("fog", "snow"))
    with pytest.raises(DataError, match=r"lacks gaussian_noise.npy, .*jpeg_compression.npy; expected a NAME.npy"):
        open_corrupted(place)
    (place / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"lacks labels\.npy"):
        open_corrupted(place, ["fog", "snow"])
    place = folder(tmp_path / "d", ("fog",))
    (place / "fog.npy").write_bytes((place / "fog.npy").read_bytes()[:500])
    with pytest.raises(DataError, match=r"fog.npy is not a whole .npy file"):
        open_corrupted(place, ["fog"])
    with (place / "fog.npy").open("wb") as file:
        np.savez(file, x=np.zeros(3))
    with pytest.raises(DataError, match=r"fog.npy is an archive"):
        open_corrupted(place, ["fog"])

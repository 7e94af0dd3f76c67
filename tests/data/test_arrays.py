"""Data sets of what a caller has in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from rkd.core.errors import DataError
from rkd.data.arrays import as_split, make_dataset
from rkd.testing import check_dataset

BYTES = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
X, Y = BYTES.float() / 255, torch.arange(12) % 3


class Items(Dataset[Any]):
    """A data set as people write one: `item(position)` gives image and label."""

    classes = ("a", "b", "c")

    def __init__(self, item: Callable[[int], Any], count: int = 12) -> None:
        self.item, self.count = item, count

    def __getitem__(self, place: int) -> Any:
        return self.item(place)

    def __len__(self) -> int:
        return self.count


def picture(place: int) -> Image.Image:
    return Image.fromarray(BYTES[place].permute(1, 2, 0).numpy())


FORMS = {
    "floats": (X, Y),
    "bytes": (BYTES, Y),
    "arrays": (X.numpy().astype(np.float64), Y.numpy().astype(np.int32)),
    "torch": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True),
    "pictures": Items(lambda place: (picture(place), int(Y[place]))),
    "items": Items(lambda place: (X[place].numpy(), Y[place].numpy())),
    "subset": Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(12)),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_data_set_in_every_form(form: str) -> None:
    """The same images, kept as bytes, and the same fingerprint."""
    given, plain = make_dataset(FORMS[form], FORMS[form]), make_dataset((X, Y), (X, Y))
    check_dataset(given)
    assert torch.equal(given.train.images(torch.arange(12)), X) and torch.equal(given.test.labels, Y)
    assert (given.fingerprint, given.mean, given.std) == (plain.fingerprint, plain.mean, plain.std)
    assert given.train.pixels(torch.tensor([0])).dtype == torch.uint8  # type: ignore[attr-defined]


def test_a_loader_of_pictures_in_palette_or_grey() -> None:
    grey = Items(lambda place: (picture(place).convert("L"), int(Y[place])))
    assert make_dataset(grey, grey).shape == (1, 8, 8)
    palette = Items(lambda place: (picture(place).convert("P"), int(Y[place])))
    assert make_dataset(palette, palette).shape == (3, 8, 8)


def test_names_and_numbers_of_classes() -> None:
    assert make_dataset(FORMS["pictures"], (X, Y)).classes == ("a", "b", "c")
    assert make_dataset((X, Y), (X, Y)).classes == ("0", "1", "2")
    assert make_dataset((X, Y), (X, Y), classes=4).classes == ("0", "1", "2", "3")
    data = make_dataset((X, Y), (X, Y), classes=["x", "y", "z"], mean=[0.5] * 3, std=[0.25] * 3, name="mine")
    assert (data.classes, data.mean, data.name) == (("x", "y", "z"), (0.5, 0.5, 0.5), "mine")


def flipped(place: int) -> tuple[torch.Tensor, int]:
    return (X[place].flip(2) if torch.rand(()) < 0.5 else X[place]), int(Y[place])


class Balanced:
    """Deals out batches of its own."""

    def __iter__(self) -> Any:
        return iter([[0, 1]])

    def __len__(self) -> int:
        return 1


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[0], 0)])


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (X, r"the training data: expected a pair \(images, labels\) .*; got Tensor"),
        ((X, Y, Y), "got tuple of 3"),
        ((X.permute(0, 2, 3, 1), Y), r"looks like \(N, H, W, C\); take images.permute\(0, 3, 1, 2\)"),
        ((X[:, 0], Y), r"got \(12, 8, 8\); grey ones need a channel: images\[:, None\]"),
        (((X - 0.5) / 0.25, Y), "these go from -2 to 2: they are normalised. Take the normalisation out"),
        ((X * 255, Y), "these go to 255: divide them by 255"),
        ((X / 255, Y), "no image is brighter than 0.0039: they were divided by 255 twice"),
        ((X * float("nan"), Y), "not numbers"),
        ((BYTES.long(), Y), "must be uint8 .* got torch.int64"),
        ((BYTES // 255, Y), "uint8 images go from 0 to 255, and these to 1"),
        ((X, Y + 1), "training labels go from 1 to 3: classes are numbered from 0, take labels - 1"),
        ((X, Y * 2), "labels go up to 4, but no image has the label 1, 3"),
        ((X, Y - 1), "a training label is -1"),
        ((X, torch.eye(3)[Y]), r"labels must be whole numbers \(N,\), got \(12, 3\); take labels.argmax\(1\)"),
        ((X, Y[:, None]), r"got \(12, 1\); take labels.flatten\(\)"),
        ((X, Y[:3]), "12 images but 3 labels"),
        ((X.numpy(), np.array(["cat"] * 12)), "labels must be numbers, got an array of <U3"),
        ((X[:0], Y[:0]), "the training data hold no images"),
        ((X[..., :4], Y), r"training images are \(3, 8, 4\) \(C, H, W\), test images \(3, 8, 8\)"),
        (Items(flipped), "comes out otherwise the second time: take random transforms out"),
        (Items(lambda place: (X[place] * 2 - 1, 0)), "they are normalised"),
        (Items(lambda place: X[place]), "items must be pairs .*, item 0 is a Tensor"),
        (Items(lambda place: (X[place], "cat")), "labels must be whole numbers, label 0 is str"),
        (Items(lambda place: ("cat.png", 0)), r"images must be \(C, H, W\), image 0 is str; transforms.ToTensor"),
        (Items(lambda place: (X[place, :, : 4 + place], 0)), "image 1 is .*: resize and crop all to one size"),
        (Items(lambda place: (X[place], 0), 0), "the Items is empty"),
        (Stream(), "an IterableDataset has no positions"),
        (DataLoader(Stream()), "an IterableDataset has no positions"),
        (
            DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 12, 5)),
            "WeightedRandomSampler chooses",
        ),
        (DataLoader(TensorDataset(X, Y), batch_sampler=Balanced()), "Balanced chooses images"),
        (DataLoader(TensorDataset(X, Y), collate_fn=lambda items: items), "collate_fn would not be used"),
    ],
)
def test_what_is_refused(train: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        make_dataset(train, (X, Y))


@pytest.mark.parametrize(
    ("classes", "problem"),
    [(1, "must be 2 to"), (2, "a training label .* is 2"), ("abc", "are their names"), (["a", "a", "b"], "each once")],
)
def test_classes_that_do_not_fit(classes: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        make_dataset((X, Y), (X, Y), classes=classes)


def test_a_split_stays_as_it_is() -> None:
    split = as_split((X, Y))
    assert as_split(split) is split

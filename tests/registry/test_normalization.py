"""Input normalisations by name and by numbers."""

from __future__ import annotations

import re

import pytest

from rkd.plugins.datasets.torchvision import Cifar10, Cifar100, Published
from rkd.registry.normalization import known_normalization, normalization

CIFAR = "0.4914,0.4822,0.4465/0.2471,0.2435,0.2616"


def test_names_and_numbers() -> None:
    data = ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert normalization("data", *data) == data
    assert normalization("none", *data) == ((0.0,), (1.0,))
    assert normalization("cifar10", *data) == normalization(CIFAR, *data)
    assert normalization("0.5/0.5", *data) == normalization("half", *data)
    assert normalization("imagenet", *data)[0][0] == 0.485


@pytest.mark.parametrize("data", [Cifar10, Cifar100])
def test_a_name_is_what_the_data_set_says(data: type[Published]) -> None:
    assert normalization(data.name, data.facts["mean"], data.facts["std"]) == (data.facts["mean"], data.facts["std"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cifra10", "did you mean cifar10"),
        ("0.5", "MEAN,.../STD,..."),
        ("0.5,0.5/0.2", "as many means as stds"),
        ("0.5/0", "above 0"),
        ("0.5/nan", "above 0"),
        ("123.7,116.3,103.5/58.4,57.1,57.4", "divide them by 255"),
    ],
)
def test_what_is_none(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){re.escape(said)}"):
        known_normalization(text)


def test_numbers_for_other_channels() -> None:
    with pytest.raises(ValueError, match="3 channels, and the images have 1"):
        normalization("imagenet", (0.1,), (1.0,))

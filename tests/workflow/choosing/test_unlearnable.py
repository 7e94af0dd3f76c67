"""Which images are unlearnable, and in which order teachers come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import RkdError
from rkd.workflow.choosing.unlearnable import (
    KEY,
    LEAST,
    at_chance,
    by_entropy,
    not_told_apart,
    read_positions,
    standard_error,
    wrong_for_all,
)


@pytest.mark.parametrize("wrap", [lambda listed: listed, lambda listed: {"dataset": "cifar10", KEY: listed}])
def test_positions_come_in_order_and_once(wrap: Any, tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    file.write_text(json.dumps(wrap([7, 3, 3, *range(50, 50 + LEAST)])))
    assert read_positions(str(file), 100).tolist() == [3, 7, *range(50, 50 + LEAST)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2", "is not valid JSON"),
        ('{"indices": [1]}', f"an object with one under '{KEY}'"),
        ("3", "expected a JSON list"),
        ("[1, 100]", r"100 is no position among 100 training images \(0 to 99\)"),
        ("[-1]", "-1 is no position"),
        ("[true]", "True is no position"),
        ('["a"]', "'a' is no position"),
        ("[1.0]", "1.0 is no position"),
        (str(list(range(LEAST - 1))), f"{LEAST - 1} robustly unlearnable images are too few"),
    ],
)
def test_files_that_list_no_positions(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    file.write_text(text)
    with pytest.raises(RkdError, match=said):
        read_positions(str(file), 100)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RkdError, match="there is no file"):
        read_positions(str(tmp_path / "none.json"), 100)


def test_wrong_for_all() -> None:
    rights = [torch.tensor([True, False, False, True]), torch.tensor([False, False, True, True])]
    assert wrong_for_all(rights).tolist() == [1]
    assert wrong_for_all(rights[:1]).tolist() == [1, 2]


def test_chance_is_the_share_of_the_commonest_class() -> None:
    labels = torch.tensor([0] * 60 + [1] * 40)
    assert at_chance(labels == 0, labels)
    assert at_chance(torch.arange(100) < 74, labels)
    assert not at_chance(torch.arange(100) < 75, labels)  # 0.6 + 3 sqrt(0.6 * 0.4 / 100) = 0.747


def test_the_highest_mean_entropy_comes_first() -> None:
    entropies = {"low": torch.zeros(40), "high": torch.full((40,), 2.0), "middle": torch.full((40,), 1.0)}
    assert by_entropy(entropies) == ["high", "middle", "low"]
    assert not_told_apart(entropies) == []


def test_neighbours_are_compared_image_by_image() -> None:
    """Two teachers that differ a little on each image are told apart, however much images differ."""
    images = torch.linspace(0, 2, 40, dtype=torch.float64)
    noise = torch.tensor([0.2, -0.2], dtype=torch.float64).repeat(20)
    assert not_told_apart({"a": images, "b": images - 0.01}) == []
    ((first, second, mean, error),) = not_told_apart({"b": images, "a": images + noise + 0.01})
    assert (first, second) == ("a", "b")
    assert mean == pytest.approx(0.01) and error == pytest.approx(standard_error(noise))
    assert standard_error(noise) == pytest.approx(0.2 * (40 / 39) ** 0.5 / 40**0.5)


def test_equal_teachers_are_not_told_apart() -> None:
    assert len(not_told_apart({"a": torch.ones(40), "b": torch.ones(40)})) == 1

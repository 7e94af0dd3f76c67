"""Measures against plain loops, and what a result says of them."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.evaluation.result import (
    calibration,
    difference,
    interval,
    nrr,
    packed,
    per_class,
    unpacked,
    w_robust,
    wilson,
)

from .made import made


def test_calibration_is_the_loop_of_guo_et_al() -> None:
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(500, generator=generator) * 0.9 + 0.1
    confidence[0] = 1.0
    right = torch.rand(500, generator=generator) < confidence**2
    found = calibration(confidence, right)
    expected = 0.0
    for place in range(15):
        low, high = place / 15, (place + 1) / 15
        rows = [i for i in range(500) if low < float(confidence[i].double()) <= high]
        count, sure, good = found["bins"][place]
        assert count == len(rows)
        if rows:
            accuracy = sum(bool(right[i]) for i in rows) / len(rows)
            mean = sum(float(confidence[i].double()) for i in rows) / len(rows)
            assert (sure, good) == pytest.approx((mean, accuracy), abs=1e-9)
            expected += len(rows) / 500 * abs(accuracy - mean)
    assert found["ece"] == pytest.approx(expected, abs=1e-9)
    assert found["confidence"] == pytest.approx(float(confidence.double().mean()))


def test_a_calibrated_net_has_no_error_and_an_overconfident_one_has_all_of_it() -> None:
    right = torch.tensor([True] * 8 + [False] * 2)
    assert calibration(torch.full((10,), 0.8), right)["ece"] == pytest.approx(0, abs=1e-6)
    assert calibration(torch.ones(10), right)["ece"] == pytest.approx(0.2)


def test_per_class() -> None:
    labels = torch.tensor([0, 0, 2, 2, 2])
    right = torch.tensor([True, False, True, True, False])
    assert per_class(right, labels, 4) == [0.5, None, pytest.approx(2 / 3), None]


def test_w_robust_and_nrr() -> None:
    assert w_robust(0.8, 0.4) == pytest.approx(0.6)
    assert nrr(0.8, 0.4) == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert nrr(0.0, 0.0) == 0


def test_interval_is_wilsons() -> None:
    right = torch.tensor([True] * 9 + [False])
    assert interval(right) == pytest.approx(list(wilson(9, 10)))


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # the examples of Newcombe, Statistics in Medicine 17, 1998, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(count - successes, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)
    for bound in wilson(successes, count):  # it is where the normal test of that fraction just rejects
        z = abs(successes / count - bound) / math.sqrt(bound * (1 - bound) / count) if 0 < bound < 1 else 1.959964
        assert z == pytest.approx(1.959964, rel=1e-6)


def test_summary() -> None:
    result = made([True] * 8 + [False] * 2, a=[True] * 4 + [False] * 6, b=[False] * 2 + [True] * 3 + [False] * 5)
    summary = result.summary()
    assert summary["clean"] == pytest.approx(0.8)
    assert summary["attacks"] == pytest.approx({"a": 0.4, "b": 0.3})
    assert summary["w_robust"] == pytest.approx({"a": 0.6, "b": 0.55})
    assert summary["nrr"]["a"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert summary["worst_case"] == pytest.approx(0.2)
    assert summary["interval_95"]["clean"] == pytest.approx(wilson(8, 10))


def test_the_worst_case_of_rounded_images() -> None:
    result = made([True] * 4, a=[False] * 4, b=[False] * 4, far=[False] * 4)
    assert "rounded" not in result.summary()
    result.outcomes["a"].rounded = torch.tensor([True, True, False, False])
    result.outcomes["b"].rounded = torch.tensor([True, False, True, False])
    result.outcomes["far"].rounded = torch.tensor([False] * 4)
    result.outcomes["far"].about["in_threat"] = False
    assert result.summary()["rounded"] == {"a": 0.5, "b": 0.5, "far": 0.0, "worst_case": 0.25}


def test_who_is_right_as_text() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 4, 7, 359):
        right = torch.rand(count, generator=generator) < 0.6
        assert torch.equal(unpacked(packed(right), count), right)
    assert packed(torch.tensor([True, False, False, False, True])) == "88"


def test_the_interval_of_a_difference_is_agresti_and_mins() -> None:
    """Beside the formula for a table of two nets: b images that only the first gets right, c that only the second."""
    for b, c, count in ((0, 0, 50), (9, 2, 100), (3, 30, 359)):
        first = torch.tensor([True] * b + [False] * c + [True] * (count - b - c))
        second = torch.tensor([False] * b + [True] * c + [True] * (count - b - c))
        b1, c1, n1 = b + 0.5, c + 0.5, count + 2
        half = 1.959964 * math.sqrt(b1 + c1 - (b1 - c1) ** 2 / n1) / n1
        mean, low, high = difference(first, second)
        assert mean == pytest.approx((b - c) / count)
        assert (low, high) == pytest.approx(((b1 - c1) / n1 - half, (b1 - c1) / n1 + half))


def test_the_interval_of_a_difference_holds_the_truth_in_19_of_20_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(1000):
        first, second = torch.rand(2, 100, generator=generator) < torch.tensor([[0.8], [0.7]])
        _, low, high = difference(first, second)
        held += low <= 0.1 <= high
    assert 930 <= held <= 975

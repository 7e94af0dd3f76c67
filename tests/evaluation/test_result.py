"""Measures against plain loops, and what a result says of them."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.evaluation.result import calibration, interval, nrr, per_class, w_robust, wilson

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

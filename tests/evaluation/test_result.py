"""Measures against plain loops."""

from __future__ import annotations

import pytest
import torch

from rkd.evaluation.result import calibration, interval, nrr, per_class, w_robust, wilson


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

"""Means of an epoch."""

from __future__ import annotations

import pytest
import torch

from rkd.core.run import RunningMeans


def test_means() -> None:
    meter = RunningMeans()
    for loss, other in ((1.0, 10.0), (2.0, 20.0), (6.0, 0.0)):
        meter.add({"loss": torch.tensor(loss), "loss.other": torch.tensor(other)})
    assert meter.means() == pytest.approx({"loss": 3.0, "loss.other": 10.0})


def test_a_term_that_is_not_there_in_every_step_counts_over_all() -> None:
    meter = RunningMeans()
    meter.add({"loss": torch.tensor(1.0), "loss.other": torch.tensor(4.0)})
    meter.add({"loss": torch.tensor(3.0)})
    assert meter.means() == pytest.approx({"loss": 2.0, "loss.other": 2.0})


def test_it_goes_on_where_its_state_was_taken() -> None:
    one, other = RunningMeans(), RunningMeans()
    one.add({"loss": torch.tensor(1.0)})
    other.load_state_dict(one.state_dict())
    for meter in (one, other):
        meter.add({"loss": torch.tensor(2.0)})
    assert one.means() == other.means() == {"loss": 1.5}

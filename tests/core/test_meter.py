"""Means of an epoch, and the watch that does not wait."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.meter import Meter

CPU = torch.device("cpu")


def values(loss: float, other: float = 0.0) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "loss.other": torch.tensor(other)}


def test_means() -> None:
    meter = Meter(CPU)
    for loss, other in ((1.0, 10.0), (2.0, 20.0), (6.0, 0.0)):
        assert meter.add(values(loss, other))
    assert meter.means() == pytest.approx({"loss": 3.0, "loss.other": 10.0})


def test_a_term_that_is_not_there_in_every_step_counts_over_all() -> None:
    meter = Meter(CPU)
    meter.add(values(1.0, 4.0))
    meter.add({"loss": torch.tensor(3.0)})
    assert meter.means() == pytest.approx({"loss": 2.0, "loss.other": 2.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_at_once_on_the_cpu(bad: float) -> None:
    meter = Meter(CPU)
    assert meter.add(values(1.0, bad))  # the loss alone is watched
    assert not meter.add(values(bad))


class Slow:
    """A copy that has arrived when somebody says so."""

    there = False
    asked = 0

    def record(self) -> None:
        Slow.asked += 1

    def query(self) -> bool:
        return Slow.there


def test_late_on_a_gpu_and_never_forgotten() -> None:
    Slow.there, Slow.asked = False, 0
    meter = Meter(CPU, event=Slow)
    assert meter.add(values(1.0))
    for _ in range(5):  # nothing has arrived: no second copy is begun, nothing is waited for
        assert meter.add(values(math.nan))
    assert Slow.asked == 1
    Slow.there = True
    assert meter.add(values(1.0))  # the copy of the first step arrives, and is finite; a new one sets out
    assert not meter.add(values(1.0))
    assert math.isnan(meter.means()["loss"])

"""Schedules, batches, threat models, and how radii are written."""

from __future__ import annotations

import pytest
import torch

from rkd.core.types import Batch, ThreatModel, at


def test_a_number_or_a_function_of_progress() -> None:
    assert at(0.3, 0.9) == 0.3
    assert at(lambda progress: 2 * progress, 0.25) == 0.5


@pytest.mark.parametrize("keep", [torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3)])
def test_a_part_of_a_batch(keep: torch.Tensor | slice) -> None:
    x = torch.arange(3.0).view(3, 1, 1, 1)
    batch = Batch(x, torch.arange(3), torch.arange(3) + 10, {"weak": x + 1}, torch.arange(3) * 5)
    part = batch.select(keep)
    rows = torch.arange(3)[keep]
    assert len(part) == 2
    assert torch.equal(part.x.flatten(), rows.float()) and torch.equal(part.y, rows)
    assert torch.equal(part.index, rows + 10) and torch.equal(part.views["weak"].flatten(), rows + 1.0)
    assert part.version is not None and torch.equal(part.version, rows * 5)


def test_another_radius_keeps_the_steps_share() -> None:
    threat = ThreatModel("Linf", 8 / 255, 2 / 255).with_eps(4 / 255)
    assert (threat.norm, threat.eps) == ("Linf", 4 / 255) and threat.step_size == pytest.approx(1 / 255)
    assert ThreatModel("L2", 0.0, 0.0).with_eps(0.5).step_size == 0.0

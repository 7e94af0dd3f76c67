"""The stubs that checks use."""

from __future__ import annotations

import torch

from rkd import testing
from rkd.testing import LinearNet, tiny_net


def test_the_stubs() -> None:
    teacher = testing.StubTeacher("robust")
    assert (teacher.role, teacher.logits(testing.tiny_batch().x).shape, teacher.asked) == ("robust", (8, 4), 1)
    assert isinstance(tiny_net(LinearNet).arch, LinearNet)
    batch = testing.tiny_batch(soft=True)
    assert torch.allclose(batch.y.sum(1), torch.ones(8))
    assert ((batch.x == 0) | (batch.x == 1)).any(), "borders are where attacks go wrong"

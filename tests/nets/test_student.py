"""The student as losses and attacks meet it."""

from __future__ import annotations

import pytest
import torch

from rkd.nets.student import NetStudent
from rkd.testing import tiny_batch, tiny_net, untouched


@pytest.mark.parametrize("mode", ["eval", "train", "frozen"])
def test_a_student_is_attacked_with_frozen_weights(mode) -> None:
    student = NetStudent(tiny_net())
    x = tiny_batch().x.requires_grad_()
    with untouched(student.net, buffers=mode != "train"):
        with student.attacked("adv", mode) as probe:
            assert not any(p.requires_grad for p in student.net.parameters())
            (gradient,) = torch.autograd.grad(probe(x).sum(), x)
        with pytest.raises(KeyError), student.attacked("adv", mode):
            raise KeyError
    assert gradient.any()


def test_views_run_in_the_order_asked() -> None:
    student = NetStudent(tiny_net())
    x = tiny_batch().x
    ends = []
    for order in (("a", "b"), ("b", "a")):
        twin = NetStudent(tiny_net())
        images = {"a": x, "b": 1 - x}
        logits = twin.logits({view: images[view] for view in order}, "train")
        assert list(logits) == list(order)
        ends.append(twin.net.arch.norm.running_mean.clone())
    assert not torch.allclose(*ends, atol=1e-6)
    assert student.deployed() is student.net

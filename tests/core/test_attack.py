"""What a search sees of a step."""

from __future__ import annotations

import torch

from rkd.core import ops
from rkd.core.attack import StepTarget
from rkd.core.random import Noise
from rkd.core.types import ThreatModel
from rkd.testing import tiny_batch, tiny_net, tiny_step
from rkd.testing.attack import cross_entropy


def test_what_a_target_offers() -> None:
    batch, net = tiny_batch(), tiny_net().eval()
    step = tiny_step(batch, net, threat=ThreatModel("L2", 0.5, 0.1), progress=0.25)
    target = StepTarget(step, cross_entropy, net, Noise(1, batch.index))
    assert (target.threat.norm, target.progress) == ("L2", 0.25)
    assert torch.equal(target.logits(batch.x), net(batch.x))
    x = batch.x.clone().requires_grad_()
    score = ops.cross_entropy(net(x), batch.y)
    value, gradient = target.gradient(batch.x)
    assert torch.allclose(value, score)
    assert torch.allclose(gradient, torch.autograd.grad(score.sum(), x)[0])
    assert not value.requires_grad
    assert not gradient.requires_grad


def test_a_target_of_a_part() -> None:
    batch, net = tiny_batch(), tiny_net().eval()
    target = StepTarget(tiny_step(batch, net), cross_entropy, net, Noise(1, batch.index))
    keep = torch.tensor([3, 0])
    part = target.select(keep)
    assert torch.equal(part.y, batch.y[keep])
    assert torch.allclose(part.score(batch.x[keep]), target.score(batch.x)[keep])
    assert torch.equal(part.noise.uniform((2,)), target.noise.uniform((2,))[keep])

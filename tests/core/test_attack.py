"""What a search sees of a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.attack import Patches, PlainProbe, Target, WatchedProbe
from rkd.core.errors import Refused
from rkd.core.interfaces import Probe
from rkd.core.random import Noise
from rkd.core.step import AttackPlan
from rkd.core.types import ThreatModel
from rkd.nets.net import PLAIN, Accelerator
from rkd.ops import value_and_grad
from rkd.testing import tiny_batch, tiny_net, tiny_step
from rkd.testing.tiny import cross_entropy


def test_what_a_target_offers() -> None:
    batch, net = tiny_batch(), tiny_net().eval()
    step = tiny_step(batch, net, threat=ThreatModel("L2", 0.5, 0.1), progress=0.25)
    target = Target(step, cross_entropy, PlainProbe(net), Noise(1, batch.index))
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
    target = Target(tiny_step(batch, net), cross_entropy, PlainProbe(net), Noise(1, batch.index))
    keep = torch.tensor([3, 0])
    part = target.select(keep)
    assert torch.equal(part.y, batch.y[keep])
    assert torch.allclose(part.score(batch.x[keep]), target.score(batch.x)[keep])
    assert torch.equal(part.noise.uniform((2,)), target.noise.uniform((2,))[keep])


def test_a_search_may_ask_a_teacher_and_keep_images_of_its_own_for_another_view() -> None:
    class Two:
        mode = "eval"

        def __call__(self, x: Tensor, target: Target) -> Tensor:
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(target.ask(None, x).sum(), x)
            target.keep("other", (x + 0.01 * gradient.sign()).clamp(0, 1))
            return x

    step = tiny_step(roles=("clean", "robust"), attacks={"far": AttackPlan(Two(), cross_entropy)})
    assert torch.equal(step.image("far"), step.image())
    assert 0.009 < float((step.image("far-other") - step.image()).abs().max()) < 0.011
    assert not step.image("far-other").requires_grad
    assert [step._teachers[role].asked for role in ("clean", "robust")] == [0, 1]
    step = tiny_step(roles=("robust",), attacks={v: AttackPlan(Two(), cross_entropy) for v in ("far", "far-other")})
    with pytest.raises(Refused, match="the view 'far-other' beside its own, and something else too"):
        step.image("far")


def test_a_plain_probe_is_its_own_reference() -> None:
    batch, net = tiny_batch(), tiny_net().eval()
    probe = PlainProbe(net)
    assert isinstance(probe, Probe) and isinstance(PLAIN, Accelerator)
    assert torch.equal(probe(batch.x), net(batch.x)) and torch.equal(probe.reference(batch.x), net(batch.x))
    assert probe.low_precision("gradient") is probe
    with PLAIN.probe(net, None, net) as other:
        assert torch.equal(other(batch.x), net(batch.x)) and PLAIN.choices() == []


def test_a_watched_probe_tells_of_each_query_once() -> None:
    class Rounded(PlainProbe):
        def low_precision(self, kind: str) -> Probe:
            return PlainProbe(lambda x: net(x).round()) if kind == "gradient" else self

    batch, net = tiny_batch(), tiny_net().eval()
    told: list[Tensor] = []
    probe = WatchedProbe(Rounded(net), torch.arange(len(batch)), lambda rows, logits: told.append(logits))
    assert isinstance(probe, Probe)
    logits = probe(batch.x.clone().requires_grad_())
    assert len(told) == 1 and torch.equal(told[0], logits) and not told[0].requires_grad
    probe.reference(batch.x)
    assert len(told) == 1, "to look again is no query of the attack"
    assert probe.low_precision("forward") is probe
    probe.low_precision("gradient")(batch.x)
    assert torch.equal(told[1], logits.round())
    patches = probe.patches(batch.x)
    patches.ask(slice(0, 2), slice(1, 3), torch.zeros(len(batch), 3, 2, 2))
    assert torch.equal(told[2], net(patches.x))


def test_patches_are_kept_or_taken_back() -> None:
    batch, net = tiny_batch(), tiny_net().eval()
    patches, asked = Patches(net, batch.x), list[int]()
    patches.on_ask = asked.append
    changed = batch.x.clone()
    changed[:, :, 2:4, 0:3] = 0.5
    found = patches.ask(slice(2, 4), slice(0, 3), torch.full((len(batch), 3, 2, 3), 0.5))
    assert torch.equal(found, net(changed)) and torch.equal(patches.x, changed)
    better = torch.arange(len(batch)) % 2 == 0
    patches.settle(better)
    assert torch.equal(patches.x, torch.where(better.view(-1, 1, 1, 1), changed, batch.x))
    patches.select(better)
    patches.ask(slice(0, 1), slice(0, 1), torch.zeros(int(better.sum()), 3, 1, 1))
    assert asked == [len(batch), int(better.sum())]


def test_a_value_and_its_gradient() -> None:
    batch, net = tiny_batch(), tiny_net().eval()
    target = Target(tiny_step(batch, net), cross_entropy, PlainProbe(net), Noise(1, batch.index))
    assert isinstance(target, Target)
    x = batch.x.clone().requires_grad_()
    expected = net(x)
    logits, values, gradient = value_and_grad(target, batch.x, lambda logits: logits[:, 1] - logits[:, 0])
    assert torch.equal(logits, expected) and torch.equal(values, expected[:, 1] - expected[:, 0])
    torch.testing.assert_close(gradient, torch.autograd.grad((expected[:, 1] - expected[:, 0]).sum(), x)[0])
    assert not (logits.requires_grad or values.requires_grad or gradient.requires_grad)


def test_a_net_that_ignores_the_images_has_a_gradient_of_zeros() -> None:
    batch = tiny_batch()
    constant = PlainProbe(lambda x: torch.zeros(len(x), 4))
    target = Target(tiny_step(batch), cross_entropy, constant, Noise(1, batch.index))
    assert not target.gradient(batch.x)[1].any()
    assert not value_and_grad(target, batch.x, lambda logits: logits[:, 0])[2].any()

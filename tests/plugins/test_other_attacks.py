"""MI-FGSM, N-FGSM, DeepFool and noise: plain loops, known optima, and the promises of the interface."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkd import ops
from rkd.core.interfaces import Attack
from rkd.core.random import Noise, key
from rkd.core.traits import traits_of
from rkd.core.types import Batch, ThreatModel
from rkd.plugins.attacks import deepfool, mifgsm, noise
from rkd.plugins.attacks.deepfool import DeepFool
from rkd.plugins.attacks.mifgsm import MiFgsm
from rkd.plugins.attacks.nfgsm import NFgsm
from rkd.plugins.attacks.noise import UniformNoise
from rkd.registry.catalog import reference_keys
from rkd.testing import LinearNet, check_attack, tiny_batch, tiny_net
from rkd.testing.attack import run_attack
from rkd.testing.tiny import Scaled

LINF = ThreatModel("Linf", 8 / 255, 2 / 255)
L2 = ThreatModel("L2", 0.25, 0.06)


def labelled(net: nn.Module, count: int = 12) -> Batch:
    batch = tiny_batch(count)
    with torch.no_grad():
        return replace(batch, y=net.eval()(batch.x).argmax(1))


def standing(net: nn.Module, x: Tensor, batch: Batch) -> int:
    with torch.no_grad():
        return int(ops.correct(net.eval()(x), batch.y).sum())


def linear(distance: float, norm: str) -> tuple[nn.Module, Batch]:
    """A linear net and images at that distance from its boundary, far from 0 and 1."""
    net, batch = tiny_net(LinearNet, classes=2), tiny_batch(6, classes=2)
    slope = ((net.arch.weight[1] - net.arch.weight[0]).detach() / 0.25).reshape(batch.x.shape[1:])
    gain = slope.norm() if norm == "L2" else slope.abs().sum()
    side = (1 - 2 * batch.y.float()).reshape(-1, 1, 1, 1)
    x = 0.3 + 0.4 * batch.x
    with torch.no_grad():
        ahead = (ops.margin(net(x), batch.y) - distance * gain).reshape(-1, 1, 1, 1)
    return net, replace(batch, x=x + side * ahead * slope / slope.square().sum())


@pytest.mark.parametrize("attack", [MiFgsm(), DeepFool(), UniformNoise(), UniformNoise(draws=3)])
def test_keeps_the_promises_of_an_attack(attack: Attack) -> None:
    check_attack(attack, optimum=0.9 if isinstance(attack, MiFgsm) else 0)


def test_mifgsm_is_the_textbook_loop() -> None:
    net = tiny_net().requires_grad_(False)
    batch, eps = labelled(net), 8 / 255
    x_adv, momentum = batch.x.clone(), torch.zeros_like(batch.x)
    for _ in range(10):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), batch.y, reduction="sum"), x_adv)
        momentum = 0.9 * momentum + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv.detach() + eps / 10 * momentum.sign()).clamp(batch.x - eps, batch.x + eps).clamp(0, 1)
    assert torch.allclose(run_attack(MiFgsm(momentum=0.9), net, batch, LINF), x_adv, atol=1e-6)


@pytest.mark.parametrize(("threat", "k"), [(LINF, 2.0), (LINF, 0.0), (L2, 2.0)])
def test_nfgsm_is_the_published_step(threat: ThreatModel, k: float) -> None:
    """Noise of k eps, one step of eps from there, each clamped to [0, 1] and to nothing else."""
    net, batch = tiny_net().requires_grad_(False).eval(), tiny_batch()
    draws = Noise(key(5, "adv"), batch.index)  # as `run_attack` names its step
    noise = ops.uniform_in_ball(batch.x, draws, k * threat.eps, threat.norm)
    start = (batch.x + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(start), batch.y, reduction="sum"), start)
    step = gradient.sign() if threat.norm == "Linf" else gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = (start.detach() + threat.eps * step).clamp(0, 1)
    found = run_attack(NFgsm(noise=k), net, batch, threat)
    assert torch.allclose(found, expected, atol=1e-6)
    farthest = float(ops.image_norm(found - batch.x, threat.norm).max())
    assert farthest <= (k + 1) * threat.eps + 1e-6
    assert (farthest > 1.2 * threat.eps) == (k > 0), "nothing brings it back into the ball"


def test_nfgsm_promises_no_ball_and_takes_one_gradient() -> None:
    check_attack(NFgsm(), optimum=0, eps=float("inf"))
    assert not traits_of(NFgsm()).bounded
    asked = []
    net = tiny_net()
    net.register_forward_pre_hook(lambda *_: asked.append(1))
    run_attack(NFgsm(), net, tiny_batch())
    assert len(asked) == 1


@pytest.mark.parametrize("noise", [-1.0, float("inf"), float("nan")])
def test_nfgsm_refuses_noise_that_is_none(noise: float) -> None:
    with pytest.raises(ValueError, match="noise must be at least 0"):
        NFgsm(noise=noise)


def test_mifgsm_sees_gradients_of_a_saturated_net() -> None:
    net = tiny_net(LinearNet)
    batch = labelled(net)

    def faint(step, probe, x):
        return 1e-26 * ops.cross_entropy(probe(x), step.y)

    for threat in (LINF, L2):
        plain, scaled = (run_attack(MiFgsm(), net, batch, threat, *objective) for objective in ((), (faint,)))
        assert torch.allclose(plain, scaled, atol=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_deepfool_crosses_a_linear_boundary_just_so(norm: str) -> None:
    distance = 0.02 if norm == "Linf" else 0.2
    net, batch = linear(distance, norm)
    attack = DeepFool(bounded=False)
    x_adv = run_attack(attack, net, batch, ThreatModel(norm, 1e-3, 1e-4))
    delta = (x_adv - batch.x).flatten(1)
    size = delta.norm(dim=1) if norm == "L2" else delta.abs().amax(1)
    assert standing(net, x_adv, batch) == 0
    assert (size >= distance).all() and (size <= distance * 1.02 + 2e-4).all()
    assert DeepFool(bounded=False).overshoot == 0.02


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_deepfool_inside_the_ball(norm: str) -> None:
    distance = 0.02 if norm == "Linf" else 0.2
    net, batch = linear(distance, norm)
    for share, left in ((1.1, 0), (0.9, 6)):
        threat = ThreatModel(norm, share * distance, 0.01)
        x_adv = run_attack(DeepFool(), net, batch, threat)
        assert standing(net, x_adv, batch) == left
        with torch.no_grad():  # where it does not reach the boundary, it is still nearer
            assert (ops.margin(net(x_adv), batch.y) < ops.margin(net(batch.x), batch.y)).all()


def test_deepfool_finds_the_boundary_of_any_net_and_leaves_what_is_wrong_alone() -> None:
    net = Scaled(tiny_net(), 3)
    batch = labelled(net, 20)
    for threat in (LINF, L2):
        x_adv = run_attack(DeepFool(bounded=False), net, batch, threat)
        assert standing(net, x_adv, batch) <= 1
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        few = run_attack(DeepFool(bounded=False, candidates=2), net, batch, threat)
        assert (few - batch.x).norm() >= (x_adv - batch.x).norm()
    wrong = replace(batch, y=(batch.y + 1) % 4)
    assert torch.equal(run_attack(DeepFool(), net, wrong, LINF), batch.x)


class Bend(nn.Module):
    """Two pixels a, b: the margin is 3 - b - 5 (a - 1) below b = 0.5, and 3 - b + 5 (a - 1) above."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.flatten(1).unbind(1)
        margin = 3 - b - 5 * torch.where(b < 0.5, 1.0, -1.0) * (a - 1)
        return torch.stack((margin, torch.zeros_like(margin)), dim=1)


def test_deepfool_goes_on_from_the_clamped_image() -> None:
    """a = 1 has no room upwards: what the first steps would add there is none that later ones have to take back."""
    batch = Batch(torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), torch.zeros(1).long(), torch.arange(1))
    x_adv = run_attack(DeepFool(bounded=False, steps=8), Bend(), batch, L2)
    assert standing(Bend(), x_adv, batch) == 0
    assert x_adv.flatten()[0] > 0.4


def test_more_draws_of_noise_are_never_weaker() -> None:
    net = Scaled(tiny_net(), 3)
    batch, wide = labelled(net, 40), ThreatModel("Linf", 0.2, 0.05)
    left = [standing(net, run_attack(UniformNoise(draws=draws), net, batch, wide), batch) for draws in (1, 2, 8, 30)]
    assert left == sorted(left, reverse=True) and left[-1] < left[0] < 40


def test_noise_fills_the_ball() -> None:
    batch = Batch(torch.full((300, 3, 6, 6), 0.5), torch.zeros(300).long(), torch.arange(300))
    net = tiny_net(shape=(3, 6, 6))
    delta = run_attack(UniformNoise(), net, batch, LINF) - batch.x
    assert delta.abs().amax() > 0.99 * LINF.eps and (delta.std() - LINF.eps / 3**0.5).abs() < 1e-3
    radius = (run_attack(UniformNoise(), net, batch, L2) - batch.x).flatten(1).norm(dim=1) / L2.eps
    assert radius.max() <= 1 + 1e-6 and ((radius**108).mean() - 0.5).abs() < 0.1


@pytest.mark.parametrize(
    ("component", "options", "word"),
    [
        (MiFgsm, {"steps": 0}, "steps"),
        (MiFgsm, {"momentum": -1.0}, "momentum"),
        (MiFgsm, {"step_size": 0.0}, "step_size"),
        (DeepFool, {"overshoot": -0.1}, "overshoot"),
        (DeepFool, {"candidates": 1}, "candidates"),
        (DeepFool, {"norm": "L1"}, "norm"),
        (UniformNoise, {"draws": 0}, "draws"),
        (UniformNoise, {"eps": 8.0, "norm": "Linf"}, "8/255"),
    ],
)
def test_nonsense_is_refused(component: type, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        component(**options)


def test_names_and_citations() -> None:
    for module, name in ((mifgsm, "mifgsm"), (deepfool, "deepfool"), (noise, "noise")):
        components = module.rkd_attacks()
        assert list(components) == [name] and isinstance(components[name](), Attack)
        assert inspect.getdoc(components[name]).splitlines()[0].endswith(".")
        assert reference_keys(inspect.getdoc(module))

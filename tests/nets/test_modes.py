"""Modes: what runs how, and that every flag comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.core.errors import Refused
from rkd.nets.modes import frozen_parameters, running
from rkd.testing import tiny_batch, tiny_net, untouched

MODES = ["eval", "train", "frozen"]


def mixed() -> nn.Module:
    """A net in parts: one module in another mode than the rest, one weight that is not trained."""
    net = tiny_net().train()
    net.arch.norm.eval()
    net.arch.head.bias.requires_grad_(False)
    return net


@pytest.mark.parametrize("mode", MODES)
def test_flags_inside(mode) -> None:
    net = mixed()
    with running(net, mode):
        assert all(module.training is (mode != "eval") for module in net.modules())
        assert net.arch.norm.track_running_stats is (mode != "frozen")


@pytest.mark.parametrize("mode", MODES)
def test_flags_come_back(mode) -> None:
    net = mixed()
    with untouched(net):
        with running(net, mode):
            pass
        with pytest.raises(KeyError), running(net, mode):
            raise KeyError


@pytest.mark.parametrize("inner", MODES)
@pytest.mark.parametrize("outer", MODES)
def test_nested(outer, inner) -> None:
    net = mixed()
    with untouched(net), running(net, outer):
        flags = [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]
        with running(net, inner):
            assert net.arch.conv.training is (inner != "eval")
        assert flags == [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]


def test_frozen_uses_the_batch_and_records_nothing() -> None:
    net, x = tiny_net(), tiny_batch().x
    with untouched(net), torch.no_grad():
        with running(net, "frozen"):
            frozen = net(x)
        with running(net, "eval"):
            assert not torch.allclose(net(x), frozen, atol=1e-3)
    before = net.arch.norm.running_mean.clone()
    with running(net, "train"), torch.no_grad():
        assert torch.equal(net(x), frozen)
    assert not torch.equal(net.arch.norm.running_mean, before)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.InstanceNorm2d(3),
        nn.GroupNorm(1, 3),
    ],
    ids=lambda norm: f"{norm}"[:60],
)
def test_frozen_leaves_every_kind_of_norm_as_it_is(norm: nn.Module) -> None:
    x = torch.randn(4, 3, 5, 5)
    with untouched(norm):
        with running(norm, "frozen"):
            frozen = norm(x)
        with pytest.raises(KeyError), running(norm, "frozen"):
            raise KeyError
    with running(norm, "train"):
        assert torch.allclose(norm(x), frozen, atol=1e-6)


def test_a_module_in_two_places_is_restored_once() -> None:
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(shared, nn.ReLU(), shared).train()
    x = torch.randn(3, 4)
    with untouched(net), running(net, "frozen"):
        net(x)


def test_frozen_parameters() -> None:
    net = mixed()
    x = tiny_batch().x.requires_grad_()
    with untouched(net):
        with frozen_parameters(net):
            assert not any(p.requires_grad for p in net.parameters())
            with frozen_parameters(net):
                net(x).sum().backward()
            assert not any(p.requires_grad for p in net.parameters())
        with pytest.raises(KeyError), frozen_parameters(net):
            raise KeyError
    assert x.grad is not None


def test_parameters_made_in_inference_mode_are_refused_and_stay_as_they_are() -> None:
    """torch would raise in the middle, with half of the weights frozen and no way back."""
    with torch.inference_mode():
        net = mixed()
    flags = [p.requires_grad for p in net.parameters()]
    with pytest.raises(Refused, match="inference_mode"), frozen_parameters(net):
        pass
    assert flags == [p.requires_grad for p in net.parameters()]


def test_a_module_without_modes() -> None:
    """As frozen TorchScript is."""
    net = mixed()
    del net.arch.head.training
    for mode in MODES:
        with untouched(net.arch.norm), running(net, mode):  # type: ignore[arg-type]
            assert not hasattr(net.arch.head, "training")

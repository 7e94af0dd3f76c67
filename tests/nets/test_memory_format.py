"""Channels last: the same net, another order in memory; and nothing of it in what is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rkd.core.trainer import train_step
from rkd.nets.memory_format import arrange, follow, restore
from rkd.nets.net import HALF_SCALE, Net
from rkd.registry.catalog import load_catalog
from rkd.testing.tiny import SHAPE, TinyNet, tiny_run
from rkd.training.accumulation import Accumulation

CATALOG = load_catalog()
CPU = torch.device("cpu")


class Viewing(nn.Module):
    """A net that needs the usual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).view(len(x), -1))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2", "small-cnn"])
def test_the_same_net(model: str) -> None:
    torch.manual_seed(0)
    plain = Net(CATALOG.create("model", model)((3, 8, 8), 4)).eval()
    last = copy.deepcopy(plain)
    arrange(last, (3, 8, 8), CPU)
    assert last.channels_last and not last.training
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(last(x), plain(x), rtol=1e-4, atol=1e-4)
    restore(last)
    assert torch.equal(last(x), plain(x))


def test_a_net_that_needs_the_usual_layout_keeps_it() -> None:
    net = Net(Viewing())
    arrange(net, (3, 8, 8), CPU)
    assert not net.channels_last and net.training
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_a_gpu_in_float32_is_left_alone() -> None:
    net = Net(TinyNet())
    arrange(net, SHAPE, torch.device("cuda"))
    assert not net.channels_last


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimiser_follows_its_weights(fused: bool) -> None:
    """A momentum out of a file, and a gradient that somebody set, in the usual layout."""
    start, gradient, momentum = torch.randn(3, 2, 3, 4, 4)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone().contiguous(memory_format=layout))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=fused)
        optimizer.state[weight]["momentum_buffer"] = momentum.clone()
        weight.grad = gradient.clone()
        follow(optimizer)
        optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(found[1], found[0])


def test_float16_keeps_a_searchs_small_gradients() -> None:
    torch.manual_seed(0)
    net = Net(TinyNet()).eval().requires_grad_(False)
    x = torch.rand(4, *SHAPE)

    def gradient(scale: float) -> torch.Tensor:
        images = x.clone().requires_grad_()
        (found,) = torch.autograd.grad((scale * net(images)[:, 0]).sum(), images)
        return found

    exact = gradient(1e-6)
    net.autocast = torch.float16
    half = gradient(1e-6)
    assert HALF_SCALE > 1
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


def test_float16_trains_and_an_overflow_moves_nothing() -> None:
    """What a GPU does, on the CPU: the scaler multiplies the loss, and leaves out a step that overflows."""
    moved = {}
    for name, dtype, scale in (
        ("plain", None, 1.0),
        ("half", torch.float16, 2.0**12),
        ("over", torch.float16, 2.0**60),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype is not None)
        run = tiny_run(CATALOG.create("loss", "ce"), backward=Accumulation(scaler=scaler), clip_gradient=5.0)
        run.student.net.autocast = dtype
        before = [weight.detach().clone() for weight in run.student.net.parameters()]
        train_step(run, run.loader.batch(torch.arange(8), 0))
        after = run.student.net.parameters()
        moved[name] = torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]).detach()
    assert scaler.get_scale() == 2.0**59
    assert float(moved["over"].abs().max()) == 0 < float(moved["plain"].abs().max())
    error = (moved["half"] - moved["plain"]).norm() / moved["plain"].norm()
    assert float(error) < 0.02

"""The pretend device is as strict as a GPU, counts as the CPU does, and nobody else notices it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pretend_device import PretendTensor, host_waits, register


def numbers(device: torch.device) -> Tensor:
    return torch.arange(6.0).reshape(2, 3).to(device)


MIXED: list[Callable[[Tensor], Any]] = [
    lambda x: x + torch.ones(2, 3),
    lambda x: torch.ones(2, 3) * x,
    lambda x: x.add_(torch.ones(3)),
    lambda x: torch.cat([x, torch.ones(2, 3)]),
    lambda x: torch.stack([x.sum(), torch.ones(())]),
    lambda x: x @ torch.ones(3, 2),
    lambda x: torch.where(torch.ones(2, 3, dtype=torch.bool), x, x),
    lambda x: torch.ones(2, 3)[x.long()[0]],
    lambda x: F.cross_entropy(x, torch.tensor([0, 1])),
    lambda x: nn.Linear(3, 2)(x),
]
ASKED: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0, 0]),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copy to": lambda x: torch.ones(2, 3).copy_(x),
    "copy from": lambda x: x.copy_(torch.ones(2, 3)),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "mask": lambda x: x[x > 1],
    "put": lambda x: x.__setitem__(x > 3, x[0, :2].clone()),
    "indices of the CPU": lambda x: x[torch.tensor([0])],
    "masked_select": lambda x: x.masked_select(x > 1),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "repeat": lambda x: x[0].repeat_interleave(x[0].long()),
}
NOT_ASKED: dict[str, Callable[[Tensor], Any]] = {
    "send": lambda x: torch.ones(2).to(x.device, non_blocking=True),
    "fetch": lambda x: x.to("cpu", non_blocking=True),
    "fill": lambda x: x.__setitem__(x > 1, 0.0),
    "scalar of the CPU": lambda x: x * torch.tensor(2.0),
    "index": lambda x: x[x[0].long() % 2],
    "where": lambda x: torch.where(x > 1, x, 0),
    "shape": lambda x: (x.shape, x.numel(), len(x), x.dtype),
    "zeros": lambda x: torch.zeros_like(x) + torch.zeros(3, device=x.device) + x.new_ones(3),
    "autograd": lambda x: x.clone().requires_grad_().square().sum().backward(),
}


@pytest.mark.parametrize("mix", MIXED)
def test_mixing_with_the_cpu_raises(mix: Callable[[Tensor], Any], device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mix(numbers(device))


def test_numpy_is_refused(device: torch.device) -> None:
    x = numbers(device)
    with pytest.raises(TypeError, match="copy it to the CPU"):
        x.numpy()
    with pytest.raises(TypeError, match="copy it to the CPU"):
        np.asarray(x)
    assert x.cpu().numpy().sum() == 15


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_wait_is_recorded_with_its_place(ask: Callable[[Tensor], Any], device: torch.device) -> None:
    x = numbers(device)
    with host_waits() as waits:
        ask(x)
    assert waits and all("test_pretend_device.py" in wait for wait in waits)


@pytest.mark.parametrize("use", NOT_ASKED.values(), ids=NOT_ASKED)
def test_what_the_device_does_alone_is_not(use: Callable[[Tensor], Any], device: torch.device) -> None:
    x = numbers(device)
    with host_waits() as waits:
        use(x)
    assert waits == []


def test_a_copy_that_does_not_block_arrives_with_its_event(device: torch.device) -> None:
    x = numbers(device)
    copied = x.to("cpu", non_blocking=True)
    done = torch.Event(device)
    done.record()
    x.zero_()
    assert not copied.any()
    with host_waits() as waits:
        done.synchronize()
    assert copied.sum() == 15 and waits == []


def test_an_event_that_the_device_has_just_been_given_is_waited_for(device: torch.device) -> None:
    x = numbers(device)
    copied = x.to("cpu", non_blocking=True)
    done = torch.Event(device)
    done.record()
    with host_waits() as waits:
        done.synchronize()
    assert copied.sum() == 15 and len(waits) == 1


def test_a_net_moves_and_trains_as_on_the_cpu(device: torch.device) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    moved = copy.deepcopy(net).to(device)
    weight = moved[0].weight
    assert isinstance(weight, nn.Parameter) and moved.to(device)[0].weight is weight
    x, y = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    for one, images, labels in ((net, x, y), (moved, x.to(device), y.to(device))):
        optimizer = torch.optim.SGD(one.parameters(), 0.1, momentum=0.9, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(one(images), labels).backward()
            optimizer.step()
    copied = copy.deepcopy(moved)
    assert copied[0].weight.data_on_cpu is not weight.data_on_cpu
    assert moved.double()[0].weight.data_on_cpu.dtype is torch.float64
    for found, expected in zip(copied.cpu().state_dict().values(), net.state_dict().values(), strict=True):
        assert type(found) is not PretendTensor and torch.equal(found, expected)


def test_factories_draw_as_on_the_cpu(device: torch.device) -> None:
    makers: list[Callable[..., Tensor]] = [
        lambda **on: torch.rand(3, **on), lambda **on: torch.randn(3, **on), lambda **on: torch.randint(9, (3,), **on),
        lambda **on: torch.randperm(5, **on), lambda **on: torch.eye(2, **on), lambda **on: torch.arange(3, **on),
        lambda **on: torch.arange(1, 3, **on), lambda **on: torch.linspace(0, 1, 3, **on),
        lambda **on: torch.full((2,), 3, **on), lambda **on: torch.tensor([1, 2], **on),
    ]  # fmt: skip
    for make in makers:
        torch.manual_seed(1)
        expected = make()
        torch.manual_seed(1)
        found = make(device=device)
        assert type(found) is PretendTensor and torch.equal(found.cpu(), expected)


def test_registered_twice_and_the_cpu_as_ever(device: torch.device) -> None:
    assert register() == device == torch.zeros(1, device=device).device
    assert not torch.accelerator.is_available()
    assert type(torch.zeros(1)) is Tensor and torch.zeros(2).numpy().shape == (2,)
    with host_waits() as waits:
        assert torch.ones(2).tolist() == [1, 1]
    assert waits == []

"""How long a net takes, by what it computes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from rkd.engine.effort import CPU, forward_effort


def by_hand(products: float, numbers: float) -> float:
    return products / CPU.products + 4 * numbers / CPU.bytes


@pytest.mark.parametrize("count", [1, 5])
def test_it_is_what_one_counts_by_hand(count: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)).eval()
    x = torch.rand(count, 3, 4, 4)
    products, numbers = 3 * 9 * 8 * 16 + 8 * 16 * 10, 8 * 16 + 8 * 16 + 10
    assert forward_effort(net, x) == pytest.approx(by_hand(products, numbers))
    assert forward_effort(net.requires_grad_(False), x.requires_grad_()) == pytest.approx(by_hand(products, numbers))
    depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
    assert forward_effort(depthwise, torch.rand(count, 8, 4, 4)) == pytest.approx(by_hand(9 * 8 * 4, 8 * 4))


def test_it_does_not_hang_on_the_clock() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            time.sleep(0.05)
            return self.layer(x)

    net, x = Slow(), torch.rand(4, 6)
    assert forward_effort(net, x) == forward_effort(net.layer, x)
    assert forward_effort(torch.compile(net.layer, backend="eager"), x) == forward_effort(net.layer, x)


def test_nothing_is_left_behind() -> None:
    net = nn.Linear(6, 3)
    forward_effort(net, torch.rand(2, 6))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert net(torch.rand(2, 6)).requires_grad
    with pytest.raises(RuntimeError):
        forward_effort(net, torch.rand(2, 5))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_gpu_is_taken_for_faster() -> None:
    """Of a tensor without data, which is on no CPU."""
    net, x = nn.Conv2d(3, 8, 3), torch.empty(1, 3, 8, 8)
    assert forward_effort(net.to("meta"), x.to("meta")) < forward_effort(nn.Conv2d(3, 8, 3), x) / 10

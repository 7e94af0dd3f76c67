"""What is left as it was, and the sentences for what was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rkd import testing
from rkd.testing import tiny_net

from .conftest import says


def test_untouched() -> None:
    net = tiny_net().eval()
    with testing.untouched(net):
        net(testing.tiny_batch().x)


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("the flag training of 'arch.norm'", lambda net: net.arch.norm.eval()),
        ("the weights of 'arch.head.bias'", lambda net: net.arch.head.bias.data.add_(1)),
        ("the gradients of 'arch.conv.weight'", lambda net: net(testing.tiny_batch().x).sum().backward()),
        ("the buffers of 'arch.norm.running_mean'", lambda net: net.arch.norm.running_mean.add_(1)),
        ("the flag requires_grad of 'arch.conv.weight'", lambda net: net.arch.conv.weight.requires_grad_(False)),
        ("the hooks of 'arch.conv'", lambda net: net.arch.conv.register_forward_hook(lambda *_: None)),
        ("random state of torch", lambda net: torch.rand(1)),
        ("random state of Python", lambda net: random.random()),
    ],
)
def test_what_was_touched(word: str, change: Callable[[nn.Module], Any]) -> None:
    net = tiny_net().train()

    def check() -> None:
        with testing.untouched(net, buffers="buffers" in word):
            change(net)

    says(check, word)

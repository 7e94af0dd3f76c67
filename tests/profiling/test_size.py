"""Sizes of nets, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.profiling.size import latency_of, macs_of, size_of


class Everything(nn.Module):
    """Convolutions of all sorts, a matrix product and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 2, stride=2)
        )
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(self.convolutions(x).flatten(2).transpose(1, 2)).mean(1))


def test_macs_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    assert macs_of(net, (3, 4, 4)) == 8 * 4 * 4 * 27 + 8 * 4 * 4 * 5
    assert macs_of(nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2)), (2, 4, 4)) == 2 * 4 * 4 * 3 * 4


def test_macs_of_groups_and_attention() -> None:
    convolutions = 8 * 16 * 27 + 8 * 4 * 2 * 9 + 8 * 4 * 4 * 4
    tokens, size = 16, 4
    attention = tokens * size * 3 * size + tokens * tokens * 2 * size + tokens * size * size
    assert macs_of(Everything(), (3, 8, 8)) == convolutions + attention + 2 * tokens * size * 8 + 4 * 5


def test_a_net_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(72, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    threads = torch.get_num_threads()
    size = size_of(net, (1, 8, 8))
    assert size["parameters"] == 20 + 4 + 219 and size["bytes"] == 4 * (20 + 8 + 219) + 8
    assert set(size["latency"]) == {"median", "quartiles", "runs"}
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.get_num_threads() == threads


def test_threads_come_back_after_an_error() -> None:
    threads = torch.get_num_threads()

    def fails(x: torch.Tensor) -> torch.Tensor:
        assert len(x) == 1 and torch.get_num_threads() == 1
        raise ValueError("no")

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="no"):
            latency_of(fails, (1, 2, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)

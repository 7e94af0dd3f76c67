"""Weights packed for the shape of what comes: always the same convolution."""

import pytest
import torch
from torch import Tensor, nn

from rkd.engine import packing
from rkd.engine.packing import Packed
from rkd.nets.memory_format import channels_last


def convolved(x: Tensor, weight: Tensor, packed: Packed, padding: tuple[int, int], **others: Tensor) -> None:
    bias, other = others.get("bias"), others.get("other")
    expected = nn.functional.conv2d(x, weight, bias, packed.stride, padding, packed.dilation, packed.groups)
    expected = expected if other is None else expected + other
    found = packed.convolve(channels_last(x), padding, **others)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [((1, 1), (1, 1), 1), ((2, 2), (1, 1), 1), ((1, 2), (2, 1), 4)]
)
def test_for_inputs_of_any_shape(stride, dilation, groups) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 8 // groups, 3, 3)
    packed = Packed(weight, stride, dilation, groups)
    for batch, height, width in ((1, 9, 9), (2, 7, 12), (30, 9, 9), (31, 5, 5), (1, 9, 9)):
        x = torch.randn(batch, 8, height, width)
        convolved(x, weight, packed, (1, 1))
        convolved(x, weight, packed, (0, 2))


def test_with_bias_sum_and_activation() -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(4, 6, 7, 7), torch.randn(8, 6, 3, 3), torch.randn(8)
    other = channels_last(torch.randn(4, 8, 7, 7))
    packed = Packed(weight)
    convolved(x, weight, packed, (1, 1), bias=bias, other=other)
    expected = (nn.functional.conv2d(x, weight, bias, padding=1) + other).relu()
    found = packed.convolve(channels_last(x), (1, 1), bias, other, "relu")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected = nn.functional.conv2d(x, weight, bias, padding=1).clamp(0, 2)
    found = packed.convolve(channels_last(x), (1, 1), bias, None, "hardtanh", (0.0, 2.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_kept_for_no_more_shapes_than_there_is_room_for(monkeypatch) -> None:
    monkeypatch.setattr(packing, "MOST", 1)
    weight = torch.randn(4, 4, 3, 3)
    packed = Packed(weight)
    for size in (5, 6, 7, 8, 5):
        convolved(torch.randn(2, 4, size, size), weight, packed, (1, 1))
        assert len(packed._made) <= 2


def test_many_images_share_an_order() -> None:
    weight = torch.randn(4, 4, 3, 3)
    packed = Packed(weight)
    for batch in (packing.ALIKE, 2 * packing.ALIKE + 1, 100):
        convolved(torch.randn(batch, 4, 6, 6), weight, packed, (1, 1))
    assert len(packed._made) == 1

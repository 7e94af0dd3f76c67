"""oneDNN's layers and gradients are torch's."""

import pytest
import torch
from torch import Tensor, nn

from rkd.engine import onednn
from rkd.engine.onednn import (
    GELU,
    HARDSWISH,
    RELU,
    RELU6,
    SILU,
    Activation,
    FusedConv,
    PadShortcut,
    PrepackedConv,
    input_gradient,
)
from rkd.nets.cpu_bfloat16 import packs
from rkd.nets.memory_format import channels_last

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


# Packed weights


def convolved(x: Tensor, weight: Tensor, packed: PrepackedConv, padding: tuple[int, int], **others: Tensor) -> None:
    bias, other = others.get("bias"), others.get("other")
    expected = nn.functional.conv2d(x, weight, bias, packed.stride, padding, packed.dilation, packed.groups)
    expected = expected if other is None else expected + other
    found = packed(channels_last(x), padding, **others)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [((1, 1), (1, 1), 1), ((2, 2), (1, 1), 1), ((1, 2), (2, 1), 4)]
)
def test_for_inputs_of_any_shape(stride, dilation, groups) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 8 // groups, 3, 3)
    packed = PrepackedConv(weight, stride, dilation, groups)
    for batch, height, width in ((1, 9, 9), (2, 7, 12), (30, 9, 9), (31, 5, 5), (1, 9, 9)):
        x = torch.randn(batch, 8, height, width)
        convolved(x, weight, packed, (1, 1))
        convolved(x, weight, packed, (0, 2))


def test_with_bias_sum_and_activation() -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(4, 6, 7, 7), torch.randn(8, 6, 3, 3), torch.randn(8)
    other = channels_last(torch.randn(4, 8, 7, 7))
    packed = PrepackedConv(weight)
    convolved(x, weight, packed, (1, 1), bias=bias, other=other)
    expected = (nn.functional.conv2d(x, weight, bias, padding=1) + other).relu()
    found = packed(channels_last(x), (1, 1), bias, other, "relu")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected = nn.functional.conv2d(x, weight, bias, padding=1).clamp(0, 2)
    found = packed(channels_last(x), (1, 1), bias, None, "hardtanh", (0.0, 2.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_kept_for_no_more_shapes_than_there_is_room_for(monkeypatch) -> None:
    monkeypatch.setattr(PrepackedConv, "MAX_BYTES", 1)
    weight = torch.randn(4, 4, 3, 3)
    packed = PrepackedConv(weight)
    for size in (5, 6, 7, 8, 5):
        convolved(torch.randn(2, 4, size, size), weight, packed, (1, 1))
        assert len(packed.packed) <= 2


def test_many_images_share_an_order() -> None:
    weight = torch.randn(4, 4, 3, 3)
    packed = PrepackedConv(weight)
    for batch in (PrepackedConv.SAME_ORDER, 2 * PrepackedConv.SAME_ORDER + 1, 100):
        convolved(torch.randn(batch, 4, 6, 6), weight, packed, (1, 1))
    assert len(packed.packed) == 1


# The gradient by the input

LAYERS = {
    "taps": [
        nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 5, 5), nn.Conv2d(1, 6, (3, 5), padding=(0, 2)), nn.Conv2d(1, 4, 1),
    ],
    "flipped": [
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(20, 24, 3), nn.Conv2d(6, 7, (1, 3), padding=(0, 1)),
        nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(20, 8, 5, padding=2), nn.Conv2d(5, 4, 1),
        nn.Conv2d(3, 40, 1),
    ],
    "spread after": [nn.Conv2d(8, 12, 1, stride=2), nn.Conv2d(3, 4, 1, stride=(1, 3))],
    "phases": [nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(1, 3, 3, stride=2, padding=1)],
    "spread before": [nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12)],
    "torch's": [
        nn.Conv2d(20, 24, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(3, 4, 3, padding=4), nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(3, 4, 4, stride=2, padding=1),
    ],
}  # fmt: skip
WAYS = {"taps": "_by_taps", "phases": "_by_phases", "torch's": "_by_torch"}


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (7, 7)])
@pytest.mark.parametrize(("kind", "layer"), [(kind, layer) for kind, layers in LAYERS.items() for layer in layers])
def test_each_is_torchs_gradient(kind: str, layer: nn.Conv2d, size: tuple[int, int], monkeypatch) -> None:
    dtype = torch.bfloat16 if kind == "spread before" else torch.float32
    if dtype is torch.bfloat16 and not packs():
        pytest.skip("a processor for which oneDNN packs no bfloat16")
    weight = layer.weight.detach().to(dtype)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, layer.in_channels, *size, generator=draw).requires_grad_()
    y = nn.functional.conv2d(x, weight.float(), None, layer.stride, layer.padding, layer.dilation, layer.groups)
    g = torch.randn(y.shape, generator=draw)
    (expected,) = torch.autograd.grad(y, x, g)

    taken: list[str] = []
    for name, function in WAYS.items():
        real = getattr(onednn, function)
        monkeypatch.setattr(onednn, function, lambda *a, name=name, real=real: taken.append(name) or real(*a))
    slope = input_gradient(layer, weight)
    assert taken == ([kind] if kind in WAYS else [])
    for given in (g, channels_last(g)):
        found = slope(given.to(dtype), x.shape, None)
        there = channels_last(torch.ones_like(found))
        torch.testing.assert_close(slope(given.to(dtype), x.shape, there), found + 1, rtol=1e-2, atol=1e-2)
        assert found.shape == x.shape and found.dtype == dtype
        close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(found.float(), expected, **close)


def test_depthwise_strides_in_float32_are_torchs() -> None:
    layer = LAYERS["spread before"][0]
    assert input_gradient(layer, layer.weight.detach()).__qualname__.startswith("_by_torch")


# Layers


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_goes_back_bit_by_bit_as_torchs(inplace: bool, dtype: torch.dtype) -> None:
    """Zeros of both signs, numbers too small to be normal, and infinity among the outputs."""
    odd = torch.tensor([0.0, -0.0, 1e-40, 1e-38, torch.inf, 3.0, 2.0, 0.5])
    y = odd.repeat(12).view(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    g = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    g = g.contiguous(memory_format=torch.channels_last)
    expected = torch.ops.aten.threshold_backward(g, y, 0)
    kept = y.clone()
    found = RELU.backward(g, y, inplace)
    assert found.dtype == dtype and torch.equal(found, expected) and found.stride() == expected.stride()
    assert (found.data_ptr() == g.data_ptr()) is inplace
    assert torch.equal(y.nan_to_num(), kept.nan_to_num())


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (RELU, nn.ReLU()), (RELU6, nn.ReLU6()), (SILU, nn.SiLU()), (HARDSWISH, nn.Hardswish()),
        (GELU["none"], nn.GELU()), (GELU["tanh"], nn.GELU("tanh")),
    ],
)  # fmt: skip
def test_a_convolution_with_its_activation(activation: Activation, expected: nn.Module) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
    fused = FusedConv(layer, activation)
    x = 3 * torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected(layer(x)), rtol=1e-4, atol=1e-4)
    answers = []
    for net in (fused, nn.Sequential(layer, expected)):
        z = x.clone().requires_grad_()
        y = net(z)
        answers.append((y, torch.autograd.grad(y.square().sum(), z)[0]))
    for found, wanted in zip(*answers, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    if activation.summed:
        other = torch.randn(4, 8, 9, 9)
        torch.testing.assert_close(fused(x, other), expected(layer(x) + other), rtol=1e-4, atol=1e-4)


def test_weights_that_moved_are_read_after_a_reset() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1).requires_grad_(False)
    fused, x = FusedConv(layer), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        layer.weight.mul_(-1)
        layer.bias.add_(1)
    fused.reset()
    assert not fused.conv.packed
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_a_shortcut_of_every_other_pixel(size: tuple[int, int]) -> None:
    layer = PadShortcut(2, 1, 3)
    x = torch.rand(4, 3, *size, requires_grad=True)
    expected = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
    assert torch.equal(layer(x), expected) and torch.equal(layer.compute(x.detach()), expected)
    g = torch.rand_like(expected)
    assert torch.equal(layer.input_gradient(g, x.shape), torch.autograd.grad(expected, x, g)[0])

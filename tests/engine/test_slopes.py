"""Every way to take a convolution's gradient is torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.engine import slopes
from rkd.engine.slopes import slope_of
from rkd.nets.cpu_bfloat16 import packs
from rkd.nets.memory_format import channels_last

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

LAYERS = {
    "taps": [
        nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 5, 5), nn.Conv2d(1, 6, (3, 5), padding=(0, 2)), nn.Conv2d(1, 4, 1),
    ],
    "turned": [
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
WAYS = {
    "taps": "_taps", "turned": "_turned", "spread after": "_spread_after", "phases": "_phases",
    "spread before": "_spread_before", "torch's": "_torchs",
}  # fmt: skip


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
        real = getattr(slopes, function)
        monkeypatch.setattr(slopes, function, lambda *a, name=name, real=real: taken.append(name) or real(*a))
    slope = slope_of(layer, weight)
    assert taken == [kind]
    for given in (g, channels_last(g)):
        found = slope(given.to(dtype), x.shape, None)
        there = channels_last(torch.ones_like(found))
        torch.testing.assert_close(slope(given.to(dtype), x.shape, there), found + 1, rtol=1e-2, atol=1e-2)
        assert found.shape == x.shape and found.dtype == dtype
        close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(found.float(), expected, **close)


def test_depthwise_strides_in_float32_are_torchs() -> None:
    layer = LAYERS["spread before"][0]
    assert slope_of(layer, layer.weight.detach()).__qualname__.startswith("_torchs")

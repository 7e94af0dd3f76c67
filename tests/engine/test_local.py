"""Windows computed alone give the logits of the whole images, whatever came before them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.core.attack import Patches
from rkd.engine.local import LocalWindows, plan
from rkd.registry.catalog import Catalog

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SPOTS = [
    (0, 0, 3, 3),
    (13, 12, 3, 4),
    (5, 7, 1, 1),
    (4, 6, 5, 5),
    (15, 0, 1, 1),
    (0, 14, 6, 2),
    (7, 7, 2, 2),
    (0, 0, 16, 16),
]


class Odd(nn.Module):
    """Strides that skip pixels, dilation, groups, padding of its own along each axis, an in-place sum, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(0, 3))
        self.act = nn.ReLU(inplace=True)
        self.skips = nn.Conv2d(8, 8, 1, stride=2)
        self.wide = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(8, 4, 3, padding="same")
        self.linear = nn.Linear(4, 10)

    def forward(self, x):
        x = self.act(self.first(x))
        short = self.skips(x)
        x = self.norm(self.wide(x))
        x += short[:, :, : x.shape[2], : x.shape[3]]
        x = torch.relu(x * 2 - 0.1)
        return self.linear(self.last(self.pool(x)).mean((2, 3)))


def net_of(catalog: Catalog, name: str) -> nn.Module:
    if name == "odd":
        arch: nn.Module = Odd()
    else:
        arch = catalog.create("model", name, {})((3, 16, 16), 10)
    arch.train()
    arch(X)
    return arch.eval().requires_grad_(False)


def same_answers(
    local: Patches, whole: Patches, monkeypatch: pytest.MonkeyPatch, setting: str, never: float, always: float
) -> None:
    """Windows in all places, of which some images keep theirs; images leave; at one of them `setting` makes the whole
    net answer."""
    generator = torch.Generator().manual_seed(2)
    keep = torch.tensor([True, False, True, True, False, True])
    for number, (top, left, height, width) in enumerate(SPOTS * 2):
        new = torch.rand(len(local.x), 3, height, width, generator=generator)
        place = slice(top, top + height), slice(left, left + width)
        found, expected = local.ask(*place, new), whole.ask(*place, new)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        better = torch.rand(len(local.x), generator=generator) < 0.5
        local.settle(better)
        whole.settle(better)
        assert torch.equal(local.x, whole.x)
        if number == 5:
            local.select(keep)
            whole.select(keep)
        if number in (9, 10):
            monkeypatch.setattr(setting, never if number == 9 else always)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small-cnn", "resnet8", "wrn10-1", "mobilenetv2", "preact-resnet18", "odd"])
def test_the_logits_of_the_whole_images(catalog: Catalog, name: str, monkeypatch) -> None:
    monkeypatch.setattr("rkd.engine.local.SHARE", 2.0)  # large windows as well
    net = net_of(catalog, name)
    before = lambda x: (x - 0.5) / 0.25  # noqa: E731
    how = plan(net, X, before)
    assert how is not None
    assert any(step.kind == "conv" for step in how.steps)
    logits = lambda x: net(before(x))  # noqa: E731
    local, whole = LocalWindows(logits, X, how, piece=4), Patches(logits, X)
    same_answers(local, whole, monkeypatch, "rkd.engine.local.SHARE", never=0.0, always=2.0)


def test_small_windows_cost_a_small_share(catalog: Catalog) -> None:
    how = plan(net_of(catalog, "small-cnn"), X)
    assert how is not None
    shares = [
        how.share((8 - side // 2, 8 + (side + 1) // 2, 8 - side // 2, 8 + (side + 1) // 2)) for side in (1, 4, 16)
    ]
    assert shares[0] < shares[1] < shares[2] == pytest.approx(1)
    assert shares[0] < 0.4


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3)) if x.sum() > 0 else self.conv(-x).mean((2, 3))


@pytest.mark.parametrize("net", [Branching(), nn.Sequential(nn.Flatten(), nn.Linear(768, 10))])
def test_other_nets_are_left_alone(net: nn.Module) -> None:
    assert plan(net, X) is None

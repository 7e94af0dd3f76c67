"""Windows computed alone give the logits of the whole images, whatever came before them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.core.slope import pieces, slope
from rkd.core.step import AttackPlan
from rkd.core.types import ThreatModel
from rkd.core.windows import Windows
from rkd.data.dataset import ArraySplit
from rkd.engine import choose as module
from rkd.engine.backends import Choice
from rkd.engine.choose import Engine
from rkd.engine.local import LocalWindows, follows, plan
from rkd.engine.pieces import InPieces
from rkd.evaluation.evaluate import evaluate
from rkd.nets.net import Net
from rkd.plugins.attacks.square import Square
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_batch, tiny_net

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
    local: Windows, whole: Windows, monkeypatch: pytest.MonkeyPatch, setting: str, never: float, always: float
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


@pytest.mark.parametrize("name", ["small-cnn", "resnet8", "wrn10-1", "mobilenetv2", "preact-resnet18", "odd"])
def test_the_logits_of_the_whole_images(catalog: Catalog, name: str, monkeypatch) -> None:
    monkeypatch.setattr("rkd.engine.local.SHARE", 2.0)  # large windows as well
    net = net_of(catalog, name)
    before = lambda x: (x - 0.5) / 0.25  # noqa: E731
    how = plan(net, X, before)
    assert how is not None
    assert any(step.kind == "conv" for step in how.steps)
    logits = lambda x: net(before(x))  # noqa: E731
    local, whole = LocalWindows(logits, X, how, piece=4), Windows(logits, X)
    same_answers(local, whole, monkeypatch, "rkd.engine.local.SHARE", never=0.0, always=2.0)
    assert follows(lambda x: LocalWindows(logits, x, how), logits, X)[0] < 1e-4


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


def test_a_plan_that_is_another_function_is_seen() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 10, 3)

        def forward(self, x):
            return (self.conv(x) + torch.relu(self.conv(x))).mean((2, 3))

    net = Two().eval()
    how = plan(net, X)
    assert how is not None
    assert follows(lambda x: LocalWindows(net, x, how), lambda x: net(x) + x.mean(), X)[0] > 1e-3, (
        "the comparison sees it"
    )


def test_square_finds_the_same_in_windows(catalog: Catalog, monkeypatch) -> None:
    """And counts as many questions."""
    arch = net_of(catalog, "small-cnn")
    net = Net(arch, [0.5] * 3, [0.25] * 3).eval()
    x = tiny_batch(40, seed=4).x
    x = torch.nn.functional.interpolate(x, size=16)
    with torch.no_grad():
        split = ArraySplit(x, net(x).argmax(1))
    plans = {"square": AttackPlan(Square(queries=150), ce)}
    threat = ThreatModel("Linf", 4 / 255, 1 / 255)
    plain = evaluate(net, split, plans, threat=threat)
    how = plan(arch, x[:2], lambda x: (x - 0.5) / 0.25)
    asked: list[int] = []

    def follow(images):
        asked.append(len(images))
        return LocalWindows(net, images, how)

    monkeypatch.setattr(module, "WORTH", 0)
    monkeypatch.setattr(module, "choose", lambda net, x, **k: Choice("plain", net))
    monkeypatch.setattr(module, "followed", lambda choice, x, tell: follow)
    found = evaluate(net, split, plans, threat=threat, engine=Engine())
    assert asked
    assert 0 < plain.accuracy("square") < 1
    assert torch.equal(found.attacks["square"], plain.attacks["square"])
    assert found.outcomes["square"].forwards == plain.outcomes["square"].forwards


def test_pieces_cover_all_rows_evenly() -> None:
    for count, most in ((0, 4), (1, 4), (4, 4), (5, 4), (17, 4), (17, None)):
        slices = list(pieces(count, most))
        assert [row for part in slices for row in range(count)[part]] == list(range(count))
        assert most is None or all(part.stop - part.start <= most for part in slices)
        assert max(p.stop - p.start for p in slices) - min(p.stop - p.start for p in slices) <= 1


class InOneGo:
    """A target of which several images are asked at once."""

    def __init__(self, net: nn.Module, piece: int | None) -> None:
        self.net, self.piece = net, piece
        self.asked: list[int] = []

    def logits(self, x):
        self.asked.append(len(x))
        return self.net(x)


def test_slopes_in_pieces_are_the_slopes() -> None:
    net, batch = tiny_net().eval(), tiny_batch(10)

    def value(logits, rows):
        return logits.gather(1, batch.y[rows].unsqueeze(1)).squeeze(1)

    whole, parts = InOneGo(net, None), InOneGo(net, 4)
    for one, other in zip(slope(whole, batch.x, value), slope(parts, batch.x, value), strict=True):
        torch.testing.assert_close(one, other)
        assert not one.requires_grad
    assert whole.asked == [10] and parts.asked == [3, 3, 4]
    asked = InPieces(net, 4)
    torch.testing.assert_close(asked(batch.x), net(batch.x))

"""Windows followed along a tape give the logits of the whole images, whatever came before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rkd.core.attack import Patches
from rkd.engine import backends
from rkd.engine import incremental as module
from rkd.engine.backends import Backend, FastCopy
from rkd.engine.incremental import Kernel, Route, TapePatches
from rkd.engine.tape import Tape
from rkd.nets.cpu_bfloat16 import packs
from rkd.nets.net import Net
from rkd.nets.resize import Resize
from rkd.registry.catalog import Catalog

from .test_tape import Residual

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

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


def net_of(catalog: Catalog, name: str) -> nn.Module:
    arch: nn.Module = catalog.create("model", name, {})((3, 16, 16), 10)
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


class Uneven(nn.Module):
    """Padding larger than the kernel, strides that skip pixels, dilation, groups, a sum with what came long before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(4, 3))
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.single = nn.Conv2d(8, 8, 1)
        self.skips = nn.Conv2d(8, 6, 1, stride=2)
        self.linear = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        x = self.single(torch.relu(self.grouped(first))) + first
        return self.linear(self.skips(torch.relu(x)).mean((2, 3)))


def tape_of(net: nn.Module) -> Tape:
    tape = FastCopy(Backend(fused=True), net, None, X).tape
    assert tape is not None
    return tape


def arch_of(catalog: Catalog, name: str) -> nn.Module:
    torch.manual_seed(3)
    own = {"uneven": Uneven, "residual": Residual}
    return own[name]().eval().requires_grad_(False) if name in own else net_of(catalog, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small-cnn", "resnet8", "resnet20", "mobilenetv2", "uneven", "residual"])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_logits_of_the_whole_images(catalog: Catalog, name: str, share: float, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHARE", share)
    net = arch_of(catalog, name)
    tape = tape_of(net)
    before = lambda x: (x - 0.5) / 0.25  # noqa: E731
    logits = lambda x: net(before(x))  # noqa: E731
    local, whole = TapePatches(logits, X, tape, before, micro_batch=4), Patches(logits, X)
    same_answers(local, whole, monkeypatch, "rkd.engine.incremental.MAX_BYTES", never=0, always=2**30)


class Shifted(nn.Module):
    """A sum with what another path brings from further away than the single pixels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.single = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.far = nn.Conv2d(3, 4, 5, padding=2)
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        far = torch.relu(self.far(x))
        return self.linear((self.single(torch.relu(self.near(x))) + far).mean((2, 3)))


def test_a_window_that_cannot_be_followed_never_is() -> None:
    """However often it is asked for: the whole net answers."""
    torch.manual_seed(0)
    net = Shifted().eval().requires_grad_(False)
    tape = tape_of(net)
    route = Route(tape, [tuple(value.shape[1:]) for value in tape.values(X[:1])], 3, 3)
    assert route.windows((5, 8, 5, 8)) is None and route.windows((5, 8, 5, 8)) is None
    local, whole = TapePatches(net, X, tape, lambda x: x, micro_batch=32), Patches(net, X)
    for _ in range(3):
        new, place = torch.rand(6, 3, 3, 3), (slice(5, 8), slice(5, 8))
        torch.testing.assert_close(local.ask(*place, new), whole.ask(*place, new), rtol=1e-4, atol=1e-5)
        local.settle(torch.arange(6) % 2 == 0)
        whole.settle(torch.arange(6) % 2 == 0)


def test_small_windows_are_followed_far(catalog: Catalog) -> None:
    tape = tape_of(net_of(catalog, "mobilenetv2"))
    shapes = [tuple(value.shape[1:]) for value in tape.values(X[:1])]
    ends = [Route(tape, shapes, side, side).end for side in (1, 4, 8, 16)]
    assert ends == sorted(ends, reverse=True) and ends[0] > 5 and ends[-1] == 0


def test_what_single_pixels_are_made_of_is_not_kept(catalog: Catalog) -> None:
    tape = tape_of(net_of(catalog, "mobilenetv2"))
    shapes = [tuple(value.shape[1:]) for value in tape.values(X[:1])]
    route = Route(tape, shapes, 1, 1)
    depthwise = [n + 1 for n, step in enumerate(tape.steps[: route.end - 1]) if step.layer.layer.groups > 1]
    assert depthwise and not route.kept & set(depthwise)
    assert route.windows((7, 8, 7, 8)) is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_follows_as_it_normalises(catalog: Catalog, dtype: str, monkeypatch) -> None:
    """In micro-batches and in bfloat16 too."""
    if dtype == "bfloat16" and not packs():
        pytest.skip("a processor for which oneDNN packs no bfloat16")
    monkeypatch.setattr(module, "SHARE", 1.0)
    monkeypatch.setattr(backends, "MICRO_BATCH", 4)
    arch = catalog.create("model", "resnet8", {})((3, 16, 16), 10)
    net = Net(arch, [0.4] * 3, [0.2] * 3).eval().requires_grad_(False)
    windows = FastCopy(Backend(fused=True, dtype=dtype), net, None, X).patches(X)
    assert isinstance(windows, TapePatches)
    changed = X.clone()
    changed[:, :, 4:7, 5:9] = 1
    found = windows.ask(slice(4, 7), slice(5, 9), torch.ones(6, 3, 3, 4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, net(changed), rtol=0, atol=1e-5 if dtype == "float32" else 0.03)


def test_a_net_behind_a_resizing_is_asked_about_whole_images() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.register_forward_pre_hook(Resize((24, 24), False))
    copied = FastCopy(Backend(fused=True), net.eval().requires_grad_(False), None, X)
    assert copied.tape is not None and type(copied.patches(X)) is Patches


def test_receptive_fields() -> None:
    """Of a change, what looks at it, and of that, what it looks at: never less than what is true."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, stride=2, padding=1, dilation=2, bias=False)
    conv.weight.data.fill_(1)
    kernel = Kernel(conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    x = torch.zeros(1, 1, 11, 9)
    x[:, :, 3:5, 6:9] = 1
    with torch.no_grad():
        changed = conv(x)[0]
    top, bottom, left, right = kernel.reached((3, 5, 6, 9), tuple(changed.shape))
    outside = changed.clone()
    outside[:, top:bottom, left:right] = 0
    assert not outside.any() and changed[0, top, left:right].any()
    (first, last, begin, end), beyond = kernel.looked_at((top, bottom, left, right), 11, 9)
    seen = nn.functional.pad(x[:, :, first:last, begin:end], beyond)
    with torch.no_grad():
        found = nn.functional.conv2d(seen, conv.weight, None, conv.stride, 0, conv.dilation)
    assert torch.equal(found[0], changed[:, top:bottom, left:right])

"""Which backend a copy gets is a rule, and a copy that is another function is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from rkd.cli.commands.eval import evaluate as eval_
from rkd.cli.commands.run import run
from rkd.engine import backends
from rkd.engine.accelerator import NAMES
from rkd.engine.backends import FORCED, Backend, FastCopy, copyable, gradient, make, relative_error, rule
from rkd.nets.cpu_bfloat16 import packs
from rkd.nets.net import Net
from rkd.nets.resize import Resize
from rkd.registry.catalog import Catalog
from rkd.registry.config import EvalEngine, TrainEngine
from rkd.testing import tiny_batch, tiny_net, untouched

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def net_of(catalog: Catalog, name: str = "resnet8") -> Net:
    net = Net(catalog.create("model", name, {})((3, 16, 16), 10), [0.5] * 3, [0.25] * 3)
    net.train()
    net(X)
    return net.eval().requires_grad_(False)


def test_the_rule() -> None:
    net, cpu, gpu = tiny_net(), torch.device("cpu"), torch.device("cuda")
    onednn = torch.backends.mkldnn.is_available()
    assert rule("auto", net, cpu) == rule("bfloat16", net, cpu) == Backend(fused=onednn)
    assert rule("auto", net, gpu) == Backend()
    assert rule("folded", net, cpu) == rule("folded", net, gpu) == Backend()
    assert rule("channels-last", net, cpu) == Backend(channels_last=True)
    assert rule("compiled", net, gpu) == Backend(channels_last=True, compiled=True)
    low = rule("bfloat16", net, cpu, low=True)
    assert low.dtype == "bfloat16 inside" and low.fused is packs()
    net = Net(net, [0.5] * 3, [0.25] * 3)
    net.autocast = torch.bfloat16
    assert rule("auto", net, gpu) == Backend(channels_last=True, dtype="bfloat16")
    assert rule("auto", net, cpu) == Backend(fused=packs(), channels_last=not packs(), dtype="bfloat16")


def test_names_are_the_same_everywhere() -> None:
    """The configuration reads them without torch, the command line without pydantic."""
    for name, backend in FORCED.items():
        assert rule(name, tiny_net(), torch.device("cpu")) == backend
    for command, engine, names in (
        (run, TrainEngine, {"auto", "plain", *FORCED}),
        (eval_, EvalEngine, set(NAMES) - FORCED.keys()),
    ):
        (option,) = [option for option in command.params if option.name == "engine"]
        assert set(option.type.choices) == set(get_args(engine)) == names


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", [Backend(), Backend(channels_last=True), Backend(fused=True)])
@pytest.mark.parametrize("name", ["resnet8", "small-cnn", "mobilenetv2", "wrn10-1"])
def test_logits_and_gradients_are_the_nets(catalog: Catalog, name: str, backend: Backend, dtype: str) -> None:
    if backend.fused and (not torch.backends.mkldnn.is_available() or (dtype == "bfloat16" and not packs())):
        pytest.skip("no kernels for that")
    net = net_of(catalog, name)
    with untouched(net):
        copy = FastCopy(replace(backend, dtype=dtype), net, None, X)
    assert relative_error(copy.logits, X, gradient(net, X), exact=dtype == "float32") <= 1
    logits, slope = gradient(copy.logits, X)
    assert logits.dtype == slope.dtype == torch.float32 and slope.is_contiguous()
    words = copy.name.split(", ")
    assert ("fused" in words, "channels last" in words) == (backend.fused, backend.channels_last)
    assert "folded" in words and ("bfloat16" in words) is (dtype == "bfloat16")


@pytest.mark.skipif(not packs(), reason="a processor for which oneDNN packs no bfloat16")
@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2"])
def test_with_both_ends_in_float32_nothing_small_is_lost(catalog: Catalog, name: str) -> None:
    net = net_of(catalog, name)
    inside = FastCopy(Backend(fused=True, dtype="bfloat16 inside"), net, None, X).logits
    whole = FastCopy(Backend(fused=True, dtype="bfloat16"), net, None, X).logits
    assert len(inside(X).unique()) > len(whole(X).unique()), "logits are not rounded to eight bits"
    near = X + 2**-13  # a change below bfloat16's digits
    assert torch.equal(whole(near), whole(X)) or (inside(near) - inside(X)).abs().max() > 0
    expected, found = gradient(net, X)[1], gradient(inside, X)[1]
    assert found.dtype == torch.float32
    similar = torch.nn.functional.cosine_similarity(expected.flatten(1), found.flatten(1))
    assert similar.median() > 0.95


def test_a_batch_in_parts_is_the_batch(catalog: Catalog, monkeypatch) -> None:
    net = net_of(catalog)
    whole = FastCopy(Backend(), net, None, X)
    monkeypatch.setattr(backends, "MICRO_BATCH", 4)
    parts = FastCopy(Backend(), net, None, X)
    sizes: list[int] = []
    parts.run.net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for found, expected in zip(gradient(parts.logits, X), gradient(whole.logits, X), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert sizes == [3, 3]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not there")
@pytest.mark.parametrize(
    ("name", "options", "shape", "images"),
    [
        ("resnet20", {}, (3, 32, 32), 32),
        ("mobilenetv2", {}, (3, 32, 32), 32),
        ("small-cnn", {"width": 8}, (1, 28, 28), 83),
    ],
)
def test_small_nets_take_more_images_at_once(catalog: Catalog, name, options, shape, images) -> None:
    """The small CNN's largest activation has 8 x 28 x 28 numbers; in parts of 32 AutoAttack took a fifth longer."""
    net = Net(catalog.create("model", name, options)(shape, 10), [0.5], [0.25]).eval().requires_grad_(False)
    assert FastCopy(Backend(fused=True), net, None, torch.rand(4, *shape)).run.micro_batch == images


def test_a_net_that_mixes_its_batch_is_not_taken_apart() -> None:

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x)).mean((2, 3))
            return x - x.mean(0)

    net = Mixing().eval().requires_grad_(False)
    x = torch.rand(8, 3, 8, 8)
    told: list[str] = []
    found = make(Backend(fused=True), net, None, net, x, told.append)
    assert found.name == "plain" and "off" in told[0]


@pytest.mark.parametrize("size", [(32, 24), (8, 8)])
def test_a_net_behind_a_resizing(catalog: Catalog, size: tuple[int, int]) -> None:
    net = net_of(catalog)
    handle = net.arch.register_forward_pre_hook(Resize(size, antialias=size < (16, 16)))
    assert copyable(net)
    found = make(Backend(), net, None, net, X, lambda text: None)
    assert found.name == "folded" and found.run.resize
    torch.testing.assert_close(found.logits(X), net(X), rtol=1e-4, atol=1e-5)
    assert net.arch._forward_pre_hooks, "the net's own hook stays"
    handle.remove()
    net.arch.register_forward_pre_hook(lambda module, inputs: None)
    assert not copyable(net)


def test_a_copy_that_is_another_function_is_refused(monkeypatch) -> None:
    net, x = tiny_net(), tiny_batch().x
    told: list[str] = []
    forward = backends.Run.forward
    monkeypatch.setattr(backends.Run, "forward", lambda self, x: forward(self, x).softmax(1))
    found = make(Backend(fused=True), net, None, net, x, told.append)
    assert found.name == "plain" and found.logits is net and "off" in told[0]

    def broken(self: backends.Run, x: Tensor) -> Tensor:
        raise ValueError("not this one\nand more")

    monkeypatch.setattr(backends.Run, "forward", broken)
    assert make(Backend(), net, None, net, x, told.append).name == "plain"
    assert told[1] == "engine: the net runs as it is: not this one"


def test_where_nothing_can_be_read_nothing_is_fused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return self.linear((torch.relu(x) if x.sum() > 0 else x).mean((2, 3)))

    net = Branching().eval().requires_grad_(False)
    assert make(Backend(fused=True), net, None, net, X, lambda text: None).name == "folded, channels last"


def test_a_net_that_would_gain_nothing_runs_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3))
    net.eval().requires_grad_(False)
    assert make(Backend(fused=True), net, None, net, X, lambda text: None).name == "plain"

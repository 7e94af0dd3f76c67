"""Blocks computed again on the way back: the same bits, less kept, and refused where it might not be exact."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from rkd.api import catalog
from rkd.nets import net as nets
from rkd.nets.batchnorm import Router, add_auxiliary
from rkd.nets.checkpointing import blocks_of
from rkd.nets.modes import frozen_parameters, running
from rkd.nets.net import Net


class Block(nn.Module):
    """A residual block; `act` makes the activation. Counts its forwards."""

    def __init__(self, act=nn.ReLU, inplace=False, affine=True, dropout=0.0, **norm):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=affine, **norm)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=affine, **norm)
        self.act, self.dropout = act(inplace=inplace), dropout
        self.forwards = 0

    def forward(self, x):
        self.forwards += 1
        y = F.dropout(self.act(self.bn1(self.conv1(x))), self.dropout, self.training)
        return self.act(self.bn2(self.conv2(y)) + x)


class Blocks(nn.Module):
    """A stem, four blocks and a head."""

    def __init__(self, **settings):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(**settings) for _ in range(4)))
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        return self.last(self.blocks(self.stem(x)).mean((2, 3)))

    @property
    def forwards(self):
        return [block.forwards for block in self.blocks]


def cifar(name, **options):
    return lambda: catalog().create("model", name, options)((3, 16, 16), 5)


NETS = {
    "relu": Blocks,
    "relu6 in place": lambda: Blocks(act=nn.ReLU6, inplace=True),
    "affine=False": lambda: Blocks(affine=False),
    "no momentum": lambda: Blocks(momentum=None),
    "no running statistics": lambda: Blocks(track_running_stats=False),
    "dropout": lambda: Blocks(dropout=0.3),
    "resnet20": cifar("resnet20"),
    "mobilenetv2": cifar("mobilenetv2", width=0.5),
    "wrn16-2": cifar("wrn16-2"),
    "preact-resnet18": cifar("preact-resnet18", width=16),
}


def made(arch=Blocks, autocast=None, channels_last=False):
    torch.manual_seed(0)
    net = Net(arch()).train()
    net.autocast, net.channels_last = autocast, channels_last
    return net.to(memory_format=torch.channels_last) if channels_last else net


def images(count=8, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def usual(monkeypatch):
    monkeypatch.setattr(nets, "checkpointed", lambda net, x: nullcontext())


def after(net, mode="train"):
    """Loss, gradients, buffers and weights of two views' forwards, their backward and a step of SGD."""
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with running(net, mode):
        loss = net(images()).square().mean() + net(images().flip(3)).logsumexp(1).mean()
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    optimizer.step()
    return {"loss": loss.detach()} | gradients | {name: t.detach() for name, t in net.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", NETS)
def test_the_same_bits(name, autocast, channels_last, monkeypatch):
    net = made(NETS[name], autocast, channels_last)
    other = copy.deepcopy(net)
    found = after(net)
    assert not isinstance(net.arch, Blocks) or net.arch.forwards == [4, 4, 4, 4]
    usual(monkeypatch)
    same(found, after(other))


def test_statistics_that_are_not_recorded(monkeypatch):
    net = made()
    other = copy.deepcopy(net)
    found = after(net, "frozen")
    assert int(found["arch.blocks.0.bn1.num_batches_tracked"]) == 0
    usual(monkeypatch)
    same(found, after(other, "frozen"))


def test_blocks_are_innermost_and_have_two_layers_of_weights():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(Block(), Block()),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)),
    )
    assert blocks_of(net) == [*net[1], net[2]]
    assert [len(blocks_of(cifar(name)())) for name in ("resnet20", "mobilenetv2", "wrn16-2")] == [9, 17, 6]


def held(net):
    """Bytes that a forward leaves behind."""
    x = images(32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = net(x).sum()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2", "resnet20"])
def test_less_is_kept(name, monkeypatch):
    net = made(NETS[name], channels_last=True)
    held(net)  # whatever is made once
    less = held(net)
    usual(monkeypatch)
    assert less < 0.5 * held(net)


def test_routed_norms(monkeypatch):
    def run():
        net = made()
        router = Router()
        add_auxiliary(net, ["adv"], router)
        with router.routing([("clean", 4), ("adv", 4)]):
            joint = net(images())
        with router.routing([("adv", 8)]):
            loss = joint.sum() + net(images()).square().sum()
        loss.backward()
        return net, {name: p.grad for name, p in net.named_parameters() if p.grad is not None} | dict(net.state_dict())

    net, found = run()
    assert net.arch.forwards == [4, 4, 4, 4]
    usual(monkeypatch)
    same(found, run()[1])


def test_twice_differentiated(monkeypatch):
    def run():
        net, x = made(), images().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    found = run()
    usual(monkeypatch)
    same(found, run())


def test_a_graph_that_is_kept_gives_the_same_twice():
    net = made()
    loss = net(images()).square().sum()
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("what", ["conv2", "bn1", "input"])
def test_what_moves_before_the_backward_is_refused(what):
    net = made()
    inputs = []
    net.arch.stem.register_forward_hook(lambda module, args, output: inputs.append(output))
    loss = net(images()).sum()
    with torch.no_grad():
        (inputs[0] if what == "input" else getattr(net.arch.blocks[0], what).weight).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_the_net_itself(reentrant, monkeypatch):
    class Own(Block):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    net = made()
    net.arch.blocks = nn.Sequential(Own(), Own())
    other = copy.deepcopy(net)
    found = after(net)
    usual(monkeypatch)
    same(found, after(other))


def trained(net, x=None):
    net(images() if x is None else x).sum().backward()
    return net.arch.forwards


def test_not_where_nothing_is_trained():
    net, x = made(), images().requires_grad_()
    with frozen_parameters(net):
        assert trained(net, x) == [1, 1, 1, 1]
    assert trained(net.eval()) == [2, 2, 2, 2]
    with torch.no_grad():
        net.train()(x)
    assert net.arch.forwards == [3, 3, 3, 3]


class Buffered(nn.Identity):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x


@pytest.mark.parametrize("what", ["hook", "own hook", "buffer", "eval", "forward of its own"])
def test_not_where_it_might_not_be_exact(what):
    net = made()
    block = net.arch.blocks[0]
    calls = []
    if what == "hook":
        block.conv1.register_forward_hook(lambda *args: calls.append(1))
    elif what == "own hook":
        block.register_forward_pre_hook(lambda *args: calls.append(1))
    elif what == "buffer":
        block.act = Buffered()
    elif what == "eval":
        block.bn1.eval()
    else:
        forward = block.forward
        block.forward = lambda x: forward(x)
    assert trained(net) == [1, 2, 2, 2] and len(calls) == ("hook" in what)
    assert ("forward" in vars(block)) == (what == "forward of its own")


def test_not_within_another_mode():
    """Batch norm over several processes is one: it would not be there on the way back."""

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return 2 * result if func is F.batch_norm else result

    net = made()
    with Doubled():
        loss = net(images()).sum()
    loss.backward()
    assert net.arch.forwards == [1, 1, 1, 1]


def test_blocks_of_several_inputs_run_as_they_are():
    class Two(Block):
        def forward(self, pair):
            return super().forward(pair[0]), pair[1]

    net = made()
    net.arch.blocks = nn.Sequential(Two(), Two())
    net.arch.forward = lambda x: net.arch.last(net.arch.blocks((net.arch.stem(x), 1))[0].mean((2, 3)))
    assert trained(net) == [1, 1]


def test_the_net_is_left_as_it_was():
    net = made()
    before = [dict(vars(module)) for module in net.modules()]
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 4, 8, 8))
    assert [vars(module).keys() for module in net.modules()] == [state.keys() for state in before]
    copy.deepcopy(net)


def test_per_sample_gradients_run_as_ever():
    net = made(lambda: Blocks(track_running_stats=False))
    weights = dict(net.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(net, weights, (x,)).square().sum()

    found = torch.func.grad(loss)(weights, images())
    net(images()).square().sum().backward()
    for name, weight in weights.items():
        assert torch.allclose(found[name], weight.grad, atol=1e-5)

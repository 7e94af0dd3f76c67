"""ReLU's outputs computed again on the way back: the same bits, less kept, and out of everybody else's way."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rkd.api import catalog
from rkd.nets import checkpointing as recompute
from rkd.nets import net as nets
from rkd.nets.batchnorm import Router, add_auxiliary
from rkd.nets.checkpointing import Recompute
from rkd.nets.modes import frozen_parameters, running
from rkd.nets.net import Net, NetTeacher


class Block(nn.Module):
    """Convolution, norm, activation twice over a skip that takes the activation too; `act` makes the activation."""

    def __init__(self, act=nn.ReLU, inplace=False, affine=True, **norm):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, affine=affine, **norm)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=affine, **norm)
        self.act, self.last = act(inplace=inplace), nn.Linear(8, 5)

    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        z = self.act(self.bn2(self.conv2(y)) + y)
        return self.last((z * y.mean((2, 3), keepdim=True)).mean((2, 3)))


class Pooled(nn.Module):
    """A stem with max pooling, an activation that two layers take, and a gate."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        pooled = F.max_pool2d(y, 2)
        y = F.relu(self.norm(self.one(pooled) + self.two(pooled)))
        return self.last((y * y.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))


def cifar(name):
    return lambda: catalog().create("model", name)((3, 16, 16), 5)


NETS = {
    "relu": Block,
    "relu in place": lambda: Block(inplace=True),
    "relu6": lambda: Block(nn.ReLU6),
    "relu6 in place": lambda: Block(nn.ReLU6, inplace=True),
    "hardtanh": lambda: Block(nn.Hardtanh),
    "affine=False": lambda: Block(affine=False),
    "no momentum": lambda: Block(momentum=None),
    "no running statistics": lambda: Block(track_running_stats=False),
    "pooled": Pooled,
    "resnet20": cifar("resnet20"),
    "mobilenetv2": cifar("mobilenetv2"),
    "wrn16-2": cifar("wrn16-2"),
}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(recompute, "LEAST", 0)


def made(arch, autocast=None, channels_last=False):
    torch.manual_seed(0)
    net = Net(arch()).train()
    net.autocast, net.channels_last = autocast, channels_last
    return net.to(memory_format=torch.channels_last) if channels_last else net


def images(count=8, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def usual(monkeypatch):
    monkeypatch.setattr(nets, "recomputing", lambda net, x: nullcontext())


def after(net, mode="train"):
    """Loss, gradients, buffers and weights of two views' forwards, their backward and a step of SGD."""
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


@pytest.fixture
def counted(monkeypatch):
    """How often ReLU's outputs were made again."""
    count = []
    again = recompute.Norm.again
    monkeypatch.setattr(recompute.Norm, "again", lambda self: (count.append(1), again(self))[1])
    return count


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", NETS)
def test_the_same_bits(name, autocast, channels_last, monkeypatch, counted):
    net = made(NETS[name], autocast, channels_last)
    other = copy.deepcopy(net)
    found = after(net)
    assert counted
    usual(monkeypatch)
    same(found, after(other))


def test_each_output_is_made_again_once(counted):
    net = made(Block)
    net(images()).sum().backward()
    assert len(counted) == 2  # the skip of the sum is the first one's output, which is there by then


class Chain(nn.Module):
    """Blocks of one convolution; `skips` says of each what is added: `same`, `norm` (of another layer), `narrow`."""

    def __init__(self, skips, act=nn.ReLU, inplace=False):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in skips)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in skips)
        self.besides = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in skips)
        self.skips, self.act, self.last = skips, act(inplace=inplace), nn.Linear(8, 5)

    def forward(self, x):
        y = self.act(self.bn(self.stem(x)))
        for skip, conv, norm, beside in zip(self.skips, self.convs, self.norms, self.besides, strict=True):
            z = norm(conv(y))
            z += {"same": lambda y: y, "norm": beside, "narrow": lambda y: y.mean(1, keepdim=True)}[skip](y)
            y = self.act(z)
        return self.last(y.mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("skips", "norms"),
    [
        (["same"], 2),
        (["same", "same"], 2),  # the second block's ReLU keeps its outputs: its skip would go back two blocks
        (["same", "same", "same", "same"], 3),
        (["norm", "same"], 3),
        (["same", "norm"], 4),
        (["norm", "norm"], 5),
        (["narrow", "same"], 2),
    ],
)
def test_sums_over_skips(skips, norms, act, inplace, autocast, monkeypatch, counted):
    net = made(lambda: Chain(skips, act, inplace), autocast)
    other = copy.deepcopy(net)
    found = after(net)
    assert len(counted) == 2 * norms  # of two views
    usual(monkeypatch)
    same(found, after(other))


def test_a_skip_that_was_changed_is_no_skip_of_its_own(monkeypatch):
    def run():
        torch.manual_seed(0)
        stem, bn, conv, norm, last = (
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1),
        )  # fmt: skip
        with nets.recomputing(bn, images()):
            y = F.hardtanh(bn(stem(images())), 0.0, 6.0)
            z = norm(conv(y.detach().clone()))
            y.mul_(2)
            last(F.relu(z + y)).square().sum().backward()
        return {name: layer.weight.grad for name, layer in (("stem", stem), ("conv", conv), ("last", last))}

    found = run()
    monkeypatch.setattr(nets, "recomputing", lambda net, x: nullcontext())
    same(found, run())


def test_a_skip_that_is_changed_later_is_refused():
    torch.manual_seed(0)
    conv, norm, last, x = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), torch.rand(4, 8, 8, 8)
    with Recompute():
        skip = F.relu(x)
        loss = last(F.relu(norm(conv(x)) + skip)).sum()
    skip.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, last.weight)


def test_statistics_that_are_not_recorded(monkeypatch, counted):
    net = made(Block)
    other = copy.deepcopy(net)
    found = after(net, "frozen")
    assert counted
    assert int(found["arch.bn1.num_batches_tracked"]) == 0
    usual(monkeypatch)
    same(found, after(other, "frozen"))


def held(net):
    """Bytes that a forward leaves behind."""
    x = images(32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = net(x).sum()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("mobilenetv2", 0.6), ("resnet20", 0.72), ("relu6 in place", 0.8)])
def test_less_is_kept(name, share, monkeypatch):
    net = made(NETS[name], channels_last=True)
    held(net)  # whatever is made once
    less = held(net)
    usual(monkeypatch)
    assert less < share * held(net)


def test_routed_norms(monkeypatch, counted):
    def run():
        net = made(Block)
        router = Router()
        add_auxiliary(net, ["adv"], router)
        with router.routing([("clean", 4), ("adv", 4)]):
            joint = net(images())
        with router.routing([("adv", 8)]):
            loss = joint.sum() + net(images()).square().sum()
        loss.backward()
        found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        return found | dict(net.state_dict())

    found = run()
    assert counted
    usual(monkeypatch)
    same(found, run())


def test_twice_differentiated(monkeypatch, counted):
    def run():
        net = made(lambda: Block(nn.ReLU6))
        x = images().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    found = run()
    assert counted
    usual(monkeypatch)
    same(found, run())


def test_a_graph_that_is_kept_gives_the_same_twice():
    net = made(Block)
    loss = net(images()).square().sum()
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weights_that_move_before_the_backward_are_refused():
    for weight in ("conv2", "bn1"):
        net = made(Block)
        loss = net(images()).sum()
        with torch.no_grad():
            getattr(net.arch, weight).weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_what_the_norm_took_may_not_change():
    bn, x = nn.BatchNorm2d(8), torch.rand(4, 8, 8, 8)
    conv = nn.Conv2d(8, 8, 1)
    with Recompute():
        loss = conv(F.relu(bn(x))).sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, conv.weight)


def test_a_bias_may_move_as_ever(monkeypatch):
    def run():
        net = made(Block)
        loss = net(images()).square().sum()
        with torch.no_grad():
            net.arch.bn1.bias.add_(1)
        return dict(enumerate(torch.autograd.grad(loss, list(net.parameters()))))

    found = run()
    usual(monkeypatch)
    same(found, run())


def test_an_output_that_was_changed_is_kept(monkeypatch):
    def run():
        torch.manual_seed(0)
        one, bn, two = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        with nets.recomputing(bn, images()):
            y = F.hardtanh(bn(one(images())), 0.0, 6.0)  # keeps its inputs, so torch lets its outputs change
            y.mul_(2)
            two(y).square().sum().backward()
        return {"one": one.weight.grad, "two": two.weight.grad}

    found = run()
    monkeypatch.setattr(nets, "recomputing", lambda net, x: nullcontext())
    same(found, run())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_the_net_itself(reentrant, monkeypatch):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.block = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Block()

        def forward(self, x):
            return checkpoint(self.block, F.relu(self.norm(self.stem(x))), use_reentrant=reentrant)

    net = made(Checkpointed)
    other = copy.deepcopy(net)
    found = after(net)
    usual(monkeypatch)
    same(found, after(other))


def test_others_hooks_on_saved_tensors_come_first(counted):
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        made(Block)(images()).sum().backward()
    assert not counted


def test_not_where_nothing_is_trained(counted):
    net, x = made(Block), images().requires_grad_()
    with frozen_parameters(net):
        net(x).sum().backward()
    net.eval()
    net(x).sum().backward()
    with torch.no_grad():
        net.train()(x)
    assert not counted


def test_per_sample_gradients_run_as_ever():
    net = made(lambda: Block(track_running_stats=False))
    weights = dict(net.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(net, weights, (x,)).square().sum()

    found = torch.func.grad(loss)(weights, images())
    net(images()).square().sum().backward()
    for name, weight in weights.items():
        assert torch.allclose(found[name], weight.grad, atol=1e-5)


def test_a_teacher_is_asked_about_a_few_images_at_a_time():
    teacher = NetTeacher(made(cifar("resnet20")), "robust")
    sizes = []
    teacher.net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        found = teacher.logits(images(80))
        assert max(sizes) <= nets.MICRO_BATCH
        assert torch.allclose(found, teacher.net(images(80)), atol=1e-5)


def test_a_teacher_that_mixes_samples_is_asked_about_all():
    class Mixing(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)).flatten(1)

    teacher = NetTeacher(Mixing(), "robust")
    assert torch.equal(teacher.logits(images(80)), teacher.net(images(80)))

"""Routed batch norm: which norm serves which view, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rkd.core.errors import Refused
from rkd.nets.batchnorm import Router, add_auxiliary, batch_norms, drop_auxiliary
from rkd.nets.modes import running
from rkd.nets.net import Net
from rkd.nets.student import NetStudent
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.testing import tiny_batch, tiny_net


def student(joint: bool = False, views: tuple[str, ...] = ("adv",), net: nn.Module | None = None) -> NetStudent:
    return AuxiliaryBatchNorm(views, joint)(NetStudent(net or tiny_net()))


def images() -> dict[str, Tensor]:
    x = tiny_batch().x
    return {"adv": (x + 0.1).clamp(0, 1), "clean": x}


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_each_view_moves_its_own_statistics() -> None:
    s = student()
    before = buffers(s.net)
    s.logits({"adv": images()["adv"]}, "train")
    moved = {name for name, value in buffers(s.net).items() if not torch.equal(value, before[name])}
    assert moved == {f"arch.norm.aux.adv.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    s.logits({"clean": images()["clean"], "weak": images()["adv"]}, "train")
    assert int(s.net.arch.norm.num_batches_tracked) == 2, "views without a norm of their own go through the net's"
    assert int(s.net.arch.norm.aux["adv"].num_batches_tracked) == 1


def test_without_routing_the_net_is_the_plain_one() -> None:
    plain, s = tiny_net(), student()
    x = tiny_batch().x
    for mode in ("eval", "train"):
        with running(plain, mode), running(s.net, mode):
            assert torch.equal(plain(x), s.net(x))


def test_an_auxiliary_norm_starts_as_a_copy() -> None:
    s, x = student(), tiny_batch().x
    logits = s.logits({"adv": x, "clean": x}, "eval")
    assert torch.equal(logits["adv"], logits["clean"])


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("views", [("adv",), ("adv", "weak")])
def test_joint_is_separate(mode, views) -> None:
    """Loss, gradient and running statistics: one forward of all views is the same as one forward each."""
    x = images() | {"weak": 1 - tiny_batch().x}  # `weak` shares a norm with `clean` where it has none of its own
    results = []
    for joint in (False, True):
        s = student(joint, views)
        with torch.no_grad():
            s.net.arch.norm.aux["adv"].weight.mul_(1.5)
        logits = s.logits(x, mode)
        loss = sum((z * (1 + place)).square().mean() for place, z in enumerate(logits.values()))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in s.net.parameters()])
        results.append((torch.stack(list(logits.values())).detach(), gradient, buffers(s.net)))
    (logits, gradient, statistics), (logits_joint, gradient_joint, statistics_joint) = results
    assert torch.allclose(logits, logits_joint, atol=1e-7)
    assert torch.allclose(gradient, gradient_joint, atol=1e-6)
    for name, value in statistics.items():
        assert torch.allclose(value.float(), statistics_joint[name].float(), atol=1e-7), name


def test_joint_runs_one_forward() -> None:
    for joint, forwards in ((True, 1), (False, 2)):
        s = student(joint)
        seen = []
        s.net.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        s.logits(images(), "train")
        assert len(seen) == forwards


def test_plain_batch_norm_would_mix() -> None:
    """Why the conversion exists: one forward of both views through ordinary norms gives other logits."""
    net = NetStudent(tiny_net())
    separate = net.logits(images(), "frozen")["clean"]
    with running(net.net, "frozen"):
        mixed = net.net(torch.cat(list(images().values())))[8:]
    assert not torch.allclose(separate, mixed, atol=1e-3)


def test_attacks_go_through_the_norm_of_their_view() -> None:
    s, x = student(), tiny_batch().x
    with torch.no_grad():
        s.net.arch.norm.aux["adv"].bias.add_(1.0)
    with s.attacked("adv", "eval") as probe, torch.no_grad():
        assert torch.equal(probe(x), s.logits({"adv": x}, "eval")["adv"])
    with s.attacked("clean", "eval") as probe, torch.no_grad():
        assert not torch.equal(probe(x), s.logits({"adv": x}, "eval")["adv"])


def test_routing_ends_also_after_an_error() -> None:
    router = Router()
    with pytest.raises(KeyError), router.routing([("adv", 2)]):
        raise KeyError
    assert router.parts == ()


def test_names_of_the_main_norms_stay() -> None:
    plain, s = tiny_net().state_dict(), student().net.state_dict()
    assert [name for name in s if ".aux." not in name] == list(plain)
    assert {name for name in s if ".aux." in name} == {
        f"arch.norm.aux.adv.{name}" for name in tiny_net().arch.norm.state_dict()
    }


def test_dropping_gives_the_plain_net() -> None:
    s = student()
    for _ in range(3):
        s.logits(images(), "train")
    plain, deployed = tiny_net(), s.deployed()
    assert [type(m) for m in deployed.modules()] == [type(m) for m in plain.modules()]
    assert list(deployed.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(deployed.state_dict())
    x = tiny_batch().x
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), deployed.eval()(x))
        assert torch.equal(deployed(x), s.logits({"clean": x}, "eval")["clean"])
    assert hasattr(s.net.arch.norm, "aux"), "the student keeps its norms"


def test_deepcopy_has_a_router_of_its_own() -> None:
    s = student()
    twin = copy.deepcopy(s)
    assert twin.net.arch.norm.router is twin.router
    assert twin.router is not s.router
    twin.logits({"adv": tiny_batch().x}, "train")
    assert int(s.net.arch.norm.aux["adv"].num_batches_tracked) == 0
    assert int(twin.net.arch.norm.aux["adv"].num_batches_tracked) == 1


def test_state_dict_round_trip() -> None:
    s, twin = student(), student()
    s.logits(images(), "train")
    twin.net.load_state_dict(s.net.state_dict())
    for view, x in images().items():
        assert torch.equal(twin.logits({view: x}, "eval")[view], s.logits({view: x}, "eval")[view])


def test_norms_with_built_in_activations() -> None:
    from timm.layers import BatchNormAct2d

    arch = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.Linear(144, 4))
    plain = copy.deepcopy(arch)
    s = student(net=Net(arch))
    images = {"adv": tiny_batch().x}
    expected = NetStudent(Net(plain)).logits(images, "frozen")["adv"]
    assert torch.equal(s.logits(images, "frozen")["adv"], expected)
    assert isinstance(arch[1], BatchNormAct2d)
    assert type(s.deployed().arch[1]) is BatchNormAct2d


@pytest.mark.slow
def test_every_norm_of_a_deeper_net(catalog) -> None:
    for name in ("resnet8", "preact-resnet18-bn", "mobilenetv2"):
        net = Net(catalog.create("model", name)((3, 16, 16), 4))
        count = len(batch_norms(net))
        assert add_auxiliary(net, ["adv", "weak"], Router()) == count > 0
        assert len(batch_norms(net)) == count, "auxiliary norms are not counted"
        assert not batch_norms(drop_auxiliary(net))[0].__class__.__name__.startswith("Routed")


@pytest.mark.parametrize("views", [(), ("clean",), ("adv", "adv")])
def test_views_that_make_no_sense(views) -> None:
    with pytest.raises(ValueError, match="views"):
        AuxiliaryBatchNorm(views)


@pytest.mark.parametrize("view", ["a.b", "", "items", "forward"])
def test_names_that_cannot_be(view: str) -> None:
    with pytest.raises(Refused, match="another name"):
        student(views=(view,))


def test_refusals() -> None:
    with pytest.raises(Refused, match="no batch norm"):
        student(net=Net(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))))
    with pytest.raises(Refused, match="already"):
        AuxiliaryBatchNorm()(student())

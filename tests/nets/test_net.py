"""Nets behind their normalisation; teachers and students around them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from rkd.core.errors import Refused
from rkd.nets.net import MICRO_BATCH, Net, NetTeacher, Outputs, check_logits
from rkd.nets.student import NetStudent
from rkd.testing import TinyNet, tiny_batch, tiny_net, untouched


class Seen(nn.Module):
    """Answers with the mean of each channel that it is given."""

    def forward(self, x):
        self.dtype = x.dtype
        return x.mean((2, 3))


def test_normalisation_lives_inside() -> None:
    x = tiny_batch().x
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    logits = Net(Seen(), mean, std)(x)
    for channel in range(3):
        expected = (x[:, channel].mean((1, 2)) - mean[channel]) / std[channel]
        assert torch.allclose(logits[:, channel], expected, atol=1e-6)


def test_normalisation_is_no_weight() -> None:
    net = Net(TinyNet(), (0.4,) * 3, (0.2,) * 3)
    assert all(name.startswith("arch.") for name in net.state_dict())
    assert net.double().mean.dtype == torch.float64, "but it moves with the net"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_reduced_precision_stays_inside(dtype) -> None:
    net = tiny_net()
    net.autocast = dtype
    x = tiny_batch().x.requires_grad_()
    logits = net(x)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    if dtype:
        reference = tiny_net()(x)
        assert torch.allclose(logits, reference, atol=0.1)
        assert not torch.equal(logits, reference)


def test_autocast_keeps_no_cast_without_gradient() -> None:
    """Forwards without gradient, then one with: the weights must get theirs (pytorch issue 65766, older versions)."""
    net = tiny_net()
    net.autocast = torch.bfloat16
    student = NetStudent(net)
    with torch.autocast("cpu", torch.bfloat16):
        with student.attacked("adv", "eval") as probe, torch.no_grad():
            probe(tiny_batch().x)
            student.logits({"clean": tiny_batch().x}, "eval")
        student.logits({"clean": tiny_batch().x}, "train")["clean"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.arch.conv.parameters())


def test_a_net_that_returns_no_tensor() -> None:
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(Refused, match="Two returned tuple"):
        Net(Two())(tiny_batch().x)


def test_a_teacher_learns_nothing() -> None:
    net = tiny_net().train()
    teacher = NetTeacher(net, "robust")
    x = tiny_batch().x.requires_grad_()
    with untouched(net):
        teacher.logits(x).sum().backward()
    assert not net.training
    assert x.grad is not None
    assert x.grad.any(), "differentiable in x: AdaAD needs that"


@pytest.mark.parametrize(
    ("logits", "word"),
    [
        (torch.zeros(2, 3), "(2, 3)"),
        (torch.zeros(4), "(4,)"),
        (torch.zeros(2, 4, dtype=torch.int64), "float"),
        ((torch.zeros(2, 4),), "tuple"),
        (None, "NoneType"),
        (torch.zeros(2, 4, dtype=torch.int64), "torch.int64"),
    ],
)
def test_logits_that_are_none(logits, word: str) -> None:
    with pytest.raises(Refused, match="the net") as error:
        check_logits(logits, 2, 4, "the net")
    assert word in str(error.value)


def test_logits_that_are_fine() -> None:
    check_logits(torch.zeros(2, 4), 2, 4, "the net")
    check_logits(torch.zeros(2, 4, dtype=torch.bfloat16), 2, 4, "the net")


def test_a_teacher_is_asked_about_a_few_images_at_a_time() -> None:
    teacher = NetTeacher(tiny_net(), "robust")
    sizes: list[int] = []
    teacher.net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    x = tiny_batch(80).x
    with torch.no_grad():
        logits = teacher.logits(x)
        assert max(sizes) <= MICRO_BATCH
        assert torch.allclose(logits, teacher.net(x), atol=1e-5)


def test_a_teacher_that_mixes_samples_is_asked_about_all() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - x.mean(0)).flatten(1)

    teacher, x = NetTeacher(Mixing(), "robust"), tiny_batch(80).x
    assert torch.equal(teacher.logits(x), teacher.net(x))


def test_a_teacher_whose_weights_move_gets_a_new_probe() -> None:
    """What an accelerator made of the weights is made again."""

    class Copies:
        def probe(self, net: nn.Module, view: object, plain: object) -> AbstractContextManager[nn.Module]:
            return nullcontext(copy.deepcopy(net))

    teacher, x = NetTeacher(tiny_net(), "robust"), tiny_batch(4).x
    teacher.accelerator = Copies()  # type: ignore[assignment]
    before = teacher.logits(x)
    with torch.no_grad():
        next(teacher.net.parameters()).mul_(2)
    assert torch.equal(teacher.logits(x), teacher.net(x)) and not torch.equal(teacher.logits(x), before)


class Returns(nn.Module):
    """A net that returns something around its logits."""

    def __init__(self, around: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.arch, self.around = tiny_net(), around

    def forward(self, x: torch.Tensor) -> Any:
        return self.around(self.arch(x))


class Named(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor


@pytest.mark.parametrize(
    "around",
    [
        lambda z: {"logits": z, "hidden_states": (z, z)},
        lambda z: Named(z, 2 * z),
        lambda z: (z, z[:, :, None]),
        lambda z: [z, "text"],
        lambda z: {"output": z},
    ],
)
def test_logits_among_other_things(around: Callable[[torch.Tensor], Any]) -> None:
    x = tiny_batch(4).x
    net = Returns(around).eval()
    assert torch.equal(Net(net)(x), net.arch(x))


@pytest.mark.parametrize(
    ("around", "said"),
    [
        (lambda z: (z, 2 * z), "holds 2 tensors"),
        (lambda z: {"a": z, "b": z}, "dict with a, b that holds 2 tensors"),
        (lambda z: None, "returned NoneType"),
    ],
)
def test_logits_that_could_be_several_things(around: Callable[[torch.Tensor], Any], said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        Net(Returns(around))(tiny_batch(4).x)


def test_outputs_by_the_names_of_classes() -> None:
    own = ("cat", "dog", "owl")
    assert Outputs.by_name(own, ("owl", "cat", "dog")) == (2, 0, 1)
    assert Outputs.by_name(own, ("owl", "dog")) == (2, 1), "a part of them"
    assert Outputs.by_name(own, ("0", "1", "2")) == (0, 1, 2), "names that say nothing"
    assert Outputs.by_name(own, ("cat", "fox")) == ()
    logits = torch.arange(6.0).view(2, 3)
    assert torch.equal(Outputs((2, 0))(logits), logits[:, [2, 0]])
    with pytest.raises(Refused, match="no output 5, the net has 3"):
        Outputs((5,))(logits)


def test_an_output_answers_to_one_class() -> None:
    with pytest.raises(Refused, match="named twice"):
        Outputs([1, 3, 3])

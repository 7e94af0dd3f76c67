"""Plain functions as attacks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rkd
from rkd.core.errors import Refused
from rkd.testing import tiny_batch, tiny_net, untouched
from rkd.workflow.objects.functions import FunctionAttack, as_attack

from . import EPS, my_fgsm


def labelled(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        return x, net.eval()(x).argmax(1)


def test_plain_functions_attack() -> None:
    net = tiny_net()
    x, y = labelled(net)
    with untouched(net):
        found = rkd.evaluate(net, (x, y), [my_fgsm, "fgsm", rkd.attack_plan("fgsm", "margin")], eps=EPS, checks="off")
    assert list(found.attacks) == ["my_fgsm", "fgsm", "Fgsm"]
    assert torch.equal(found.attacks["my_fgsm"], found.attacks["fgsm"])
    named = rkd.evaluate(net, (x, y), {"a": my_fgsm, "b": "fgsm"}, eps=EPS, checks="off")
    assert torch.equal(named.attacks["a"], named.attacks["b"])


def test_a_function_draws_the_same_numbers_each_time() -> None:
    def noise(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.rand(1).item())
        return (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)

    seen: list[float] = []
    net = tiny_net()
    pair = labelled(net)
    with untouched(net):
        for _ in range(2):
            rkd.evaluate(net, pair, noise, eps=EPS, checks="off")
    half = len(seen) // 2
    assert seen[:half] == seen[half:]


def test_another_code_is_another_attack() -> None:
    """A journal and a run's configuration tell two functions of one name apart."""

    def one() -> object:
        def mine(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return images

        return mine

    def other() -> object:
        def mine(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return images.clone()

        return mine

    attacks = [as_attack(make()) for make in (one, one, other)]
    assert attacks[0] == attacks[1] != attacks[2]
    assert isinstance(attacks[2], FunctionAttack) and attacks[2].function == "mine"


def test_soft_labels_are_refused() -> None:
    batch = tiny_batch(soft=True)
    with pytest.raises(Refused, match="my_fgsm takes labels"):
        as_attack(my_fgsm)(batch.x, SimpleNamespace(y=batch.y))  # type: ignore[arg-type]

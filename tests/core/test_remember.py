"""Clean images that never change: their teachers are asked once, and say what they would say each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rkd.core import remember
from rkd.core.data import Loader
from rkd.core.distributed import ALONE
from rkd.core.nets import NetTeacher
from rkd.core.remember import Remembering, remembering
from rkd.core.trainer import fit
from rkd.plugins.augments.flip import Flip
from rkd.registry.catalog import load_catalog
from rkd.testing.tiny import StubTeacher, tiny_dataset, tiny_net, tiny_run

CATALOG = load_catalog()


class Counting(nn.Module):
    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.net = tiny_net(seed=4)
        self.noise = noise
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.net(x) + self.noise * torch.rand(1)


def run_with(net: nn.Module, cache: bool, loss: str = "rslad", **settings):
    attack = CATALOG.create("attack", "pgd", {"steps": 1})
    objective = CATALOG.create("objective", "kl-teacher")
    run = tiny_run(CATALOG.create("loss", loss), attack=attack, objective=objective, epochs=3,
                   teachers={"robust": NetTeacher(net, "robust")}, **settings)  # fmt: skip
    if cache:
        run.teachers = remembering(run.teachers, run.loader, run.epochs)
    fit(run)
    return run


def test_asked_once_and_trained_alike() -> None:
    plain, kept = Counting(), Counting()
    expected, found = run_with(plain, cache=False), run_with(kept, cache=True)
    assert plain.images == 3 * 16
    assert kept.images == 2 * 16  # all images, and the first block once more: does it say the same?
    for a, b in zip(expected.student.net.parameters(), found.student.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_other_views_are_asked_about_each_time() -> None:
    net = Counting()
    run = run_with(net, cache=True, loss="adaad")  # AdaAD's teacher sees attacked images, and is part of the search
    assert isinstance(run.teachers["robust"], Remembering)
    assert net.images > 3 * 16


def test_the_answers_do_not_depend_on_the_order() -> None:
    data = tiny_dataset()
    answers = [
        Remembering(NetTeacher(tiny_net(), "robust"), Loader(data.train, 8, seed)).remembered(torch.tensor([5, 2]))
        for seed in (0, 1)
    ]
    assert torch.equal(answers[0], answers[1])


def test_a_net_that_draws_random_numbers_is_asked_each_time() -> None:
    net = Counting(noise=0.5)
    run = run_with(net, cache=True)
    assert run.teachers["robust"].remembered(torch.tensor([0])) is None
    assert net.images == 3 * 16 + 2 * 16  # found out once


def test_too_many_answers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remember, "MOST_BYTES", 16 * 4 * 4 - 1)
    teacher = Remembering(NetTeacher(tiny_net(), "robust"), Loader(tiny_dataset().train, 8, 0))
    assert teacher.remembered(torch.tensor([0])) is None


@pytest.mark.parametrize(
    ("augments", "epochs", "ranks"), [([Flip()], 3, ALONE), ([], 1, ALONE), ([], 3, "two processes")]
)
def test_where_it_does_not_pay(augments, epochs, ranks) -> None:
    loader = Loader(tiny_dataset().train, 8, 0, augments)
    if ranks == "two processes":
        loader.ranks = type("Two", (), {"size": 2})()
    teacher = NetTeacher(tiny_net(), "robust")
    assert remembering({"robust": teacher}, loader, epochs)["robust"] is teacher


def test_a_teacher_of_another_make_is_left_alone() -> None:
    teacher = StubTeacher("robust")
    assert remembering({"robust": teacher}, Loader(tiny_dataset().train, 8, 0), 3)["robust"] is teacher

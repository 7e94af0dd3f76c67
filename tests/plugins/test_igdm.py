"""IGDM: the term and its gradient against plain float64 loops, alone and beside other losses; its weight."""

from __future__ import annotations

import pytest
import torch

from rkd.core.run import TrainState
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.adaad import AdaAD
from rkd.plugins.methods.igdm import Igdm
from rkd.plugins.objectives.kl import KlAdaptive
from rkd.registry.catalog import Catalog
from rkd.registry.losses import LossSum
from rkd.registry.schedules import Ramp
from rkd.testing import LinearNet, OneStep, check_loss, tiny_batch, tiny_net, tiny_run
from rkd.training.accumulation import Accumulation
from rkd.training.dry_run import dry_step
from rkd.workflow.resolve import resolve

from .by_hand import Rows, Setting, difference, kl, softmax

HALF = TrainState(epoch=2)
"""Of four epochs."""


def expected(s: Setting, other: str, weight: float) -> tuple[list[float], dict[str, Rows]]:
    """Values, and gradients by the student's logits: those of x' and of the other image differ in sign alone."""
    values, rows = [], []
    answers = (s.student("adv"), s.student(other), s.teacher("robust", "adv"), s.teacher("robust", other))
    for z, z_other, t, t_other in zip(*answers, strict=True):
        p, q = softmax(difference(t, t_other)), softmax(difference(z, z_other))
        values.append(weight * kl(p, q))
        rows.append(difference(q, p, weight))
    return values, {"adv": rows, other: [[-g for g in row] for row in rows]}


@pytest.mark.parametrize(("alpha", "one_sided"), [(1.0, False), (20.0, False), (3.0, True)])
def test_loss_and_gradient(alpha: float, one_sided: bool) -> None:
    s = Setting(Igdm(alpha, one_sided), objective=KlAdaptive(), epochs=4, state=HALF)
    s.images["mirror"] = 2 * s.images["clean"] - s.images["adv"]
    assert not one_sided or "mirror" not in s.step._images
    assert one_sided or float(s.images["mirror"].min()) < 0, "the mirrored image is not clamped"
    s.expect(*expected(s, "clean" if one_sided else "mirror", alpha / 2))


def test_beside_another_loss_its_images_and_answers_are_shared() -> None:
    both = LossSum({"adaad": AdaAD(), "igdm": Igdm(2.0)})
    check_loss(both)
    s = Setting(both, objective=KlAdaptive(), epochs=4, state=HALF)
    s.images["mirror"] = 2 * s.images["clean"] - s.images["adv"]
    values, rows = expected(s, "mirror", 1.0)
    for place, (z, t) in enumerate(zip(s.student("adv"), s.teacher("robust", "adv"), strict=True)):
        p, q = softmax(t), softmax(z)
        values[place] += kl(p, q)
        rows["adv"][place] = [a + b for a, b in zip(rows["adv"][place], difference(q, p), strict=True)]
    s.expect(values, rows)


@pytest.mark.parametrize(("base", "student", "teacher"), [
    ("adaad", (13, 13), (13, 10)),  # one image more for both nets
    ("rslad", (13, 13), (3, 0)),  # and the teacher on x'
    ("ard", (13, 13), (3, 0)),
])  # fmt: skip
def test_what_it_costs_beside_another_loss(
    base: str, student: tuple[int, int], teacher: tuple[int, int], catalog: Catalog
) -> None:
    plan = resolve({"loss": {"name": f"{base}+igdm"}}, catalog)
    run = tiny_run(plan.loss, attack=plan.attacks["adv"].attack, objective=plan.attacks["adv"].objective)
    counts = dry_step(run).counts
    assert (counts["student"].forwards, counts["student"].backwards) == student
    assert (counts["teacher robust"].forwards, counts["teacher robust"].backwards) == teacher


def test_its_weight_grows_over_the_real_number_of_epochs() -> None:
    """Of 100 epochs the official code's last one has alpha / 2: half of alpha does that here."""
    for epochs in (100, 200):
        weight = Igdm(20.0).weights["igdm"]
        assert [weight(epoch / epochs) for epoch in (0, epochs // 2, epochs)] == [0.0, 10.0, 20.0]
    published = [20.0 * epoch / 200 for epoch in range(100)]
    assert [Igdm(10.0).weights["igdm"](epoch / 100) for epoch in range(100)] == pytest.approx(published)
    assert Igdm(Ramp(0, 4)).weights["igdm"](0.5) == pytest.approx(1.0)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    ends = []
    for parts in ({}, {"backward": Accumulation(micro_batches=4)}):
        run = tiny_run(Igdm(), attack=OneStep(), epochs=4, state=TrainState(epoch=2), **parts)
        run.student = NetStudent(tiny_net(LinearNet, seed=3))
        run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.2)
        train_step(run, tiny_batch())
        ends.append(list(run.student.net.parameters()))
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, Ramp(1, -1)])
def test_alpha_is_not_negative(alpha) -> None:
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        Igdm(alpha)

"""DGAD against plain float64 loops: which branch a sample takes, and what the teacher says with its classes swapped."""

from __future__ import annotations

import pytest
import torch

from rkd.core.errors import Refused
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.dgad import Dgad, swapped
from rkd.plugins.objectives.kl import KlAdaptive
from rkd.registry.schedules import Ramp
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run
from rkd.testing.tiny import CLASSES
from rkd.training.accumulation import Accumulation

from .test_methods import Setting, difference, kl, softmax


def exchanged(z: list[float], y: int) -> list[float]:
    top = max(range(len(z)), key=z.__getitem__)
    found = list(z)
    found[top], found[y] = z[y], z[top]
    return found


@pytest.mark.parametrize(("beta", "reduction"), [(1.0, "batchmean"), (0.0, "batchmean"), (3.0, "mean")])
def test_loss_and_gradient(beta: float, reduction: str) -> None:
    s = Setting(Dgad(beta, reduction), objective=KlAdaptive())
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, rows, groups = [], {"adv": [], "clean": []}, set()
    teachers = zip(s.teacher("robust"), s.teacher("robust", "adv"), strict=True)
    students = zip(s.student(), s.student("adv"), strict=True)
    for (t, t_adv), (z, z_adv), y in zip(teachers, students, s.y, strict=True):
        q, q_adv = softmax(z), softmax(z_adv)
        right = max(t) == t[y]
        groups.add((right, max(t_adv) == t_adv[y]))
        view = "adv" if right else "clean"
        p = softmax(exchanged(t_adv if right else t, y))
        gap = difference(q_adv, q)
        values.append(share * kl(p, q_adv if right else q) + beta * sum(g * g for g in gap) / CLASSES)
        # d/dz of |q' - q|² / K through the softmax of each side
        for name, probabilities, sign in (("adv", q_adv, 1), ("clean", q, -1)):
            inner = sum(a * g for a, g in zip(probabilities, gap, strict=True))
            gradient = [sign * beta * 2 / CLASSES * a * (g - inner) for a, g in zip(probabilities, gap, strict=True)]
            if name == view:
                gradient = [a + b for a, b in zip(gradient, difference(probabilities, p, share), strict=True)]
            rows[name].append(gradient)
    assert {right for right, _ in groups} == {True, False}, "both branches are taken"
    s.expect(values, rows)


def test_classes_are_swapped_on_attacked_images_too() -> None:
    """Where the teacher is right on x but not on x', its answer on x' is corrected."""
    run = tiny_run(Dgad(), attack=OneStep())
    step = run.step(tiny_batch())
    clean, adv = torch.zeros(8, CLASSES), torch.zeros(8, CLASSES)
    clean[range(8), step.y] = 4.0
    adv[range(8), step.y], adv[range(8), (step.y + 1) % CLASSES] = 1.0, 5.0
    step._teacher_logits = {("robust", "clean"): clean, ("robust", "adv"): adv}
    run.total_loss(step)
    for place, y in enumerate(step.y.tolist()):
        z = [5.0 if k == y else 1.0 if k == (y + 1) % CLASSES else 0.0 for k in range(CLASSES)]
        expected = kl(softmax(z), softmax(step.student("adv")[place].tolist()))
        assert float(run.terms["adv"][place]) == pytest.approx(expected, rel=1e-4)
    assert not run.terms["clean"].any()


def test_swapped() -> None:
    z = torch.tensor([[1.0, 5.0, 3.0], [7.0, 2.0, 0.0]])
    assert swapped(z, torch.tensor([2, 0])).tolist() == [[1.0, 3.0, 5.0], [7.0, 2.0, 0.0]]


def test_the_groups_means_weighted_by_their_shares_are_the_mean_of_all() -> None:
    """As the official code writes it, for a whole batch."""
    run = tiny_run(Dgad(beta=0.0), attack=OneStep())
    step = run.step(tiny_batch())
    loss = float(run.total_loss(step).detach())
    wrong = step.teacher().argmax(1) != step.y
    assert 0 < wrong.sum() < 8
    adv, clean = run.terms["adv"][~wrong].mean(), run.terms["clean"][wrong].mean()
    assert loss == pytest.approx(float(wrong.sum() / 8 * clean + (~wrong).sum() / 8 * adv), rel=1e-5)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    runs = [tiny_run(Dgad(), attack=OneStep(), **parts) for parts in ({}, {"backward": Accumulation(micro_batches=4)})]
    for run in runs:
        run.student = NetStudent(tiny_net(LinearNet, seed=3))
        run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.2)
        train_step(run, tiny_batch())
    for a, b in zip(*(run.student.net.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_blended_labels_are_refused() -> None:
    run = tiny_run(Dgad(), attack=OneStep())
    with pytest.raises(Refused, match="hard labels"):
        run.total_loss(run.step(tiny_batch(soft=True)))


@pytest.mark.parametrize("beta", [-1.0, Ramp(1, -1)])
def test_beta_is_not_negative(beta) -> None:
    with pytest.raises(ValueError, match="beta must be at least 0"):
        Dgad(beta)

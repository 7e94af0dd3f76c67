"""LBGAT against plain float64 loops: the student and its guide, with and without TRADES' term."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.plugins.methods.lbgat import Lbgat
from rkd.plugins.objectives.kl import kl_student
from rkd.testing import OneStep, tiny_batch, tiny_run
from rkd.testing.tiny import CLASSES

from .by_hand import Setting, difference, kl, onehot, softmax


@pytest.mark.parametrize(("beta", "reduction"), [(0.0, "batchmean"), (6.0, "batchmean"), (6.0, "mean")])
def test_both_nets_losses_and_gradients(beta: float, reduction: str) -> None:
    s = Setting(Lbgat(beta, reduction), objective=kl_student)
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean, guide = [], [], [], []
    for z_adv, z, g, y in zip(s.student("adv"), s.student(), s.companion("guide"), s.y, strict=True):
        a, b, p = softmax(z_adv), softmax(z), softmax(g)
        gap = difference(z_adv, g)
        values.append(sum(v * v for v in gap) / CLASSES - math.log(p[y]) + beta * share * kl(b, a))
        pulls = [2 / CLASSES * v for v in gap]
        adv.append([v + w for v, w in zip(pulls, difference(a, b, beta * share), strict=True)])
        inner = kl(b, a)
        clean.append([beta * share * v * (math.log(v / w) - inner) for v, w in zip(b, a, strict=True)])
        guide.append([v - w for v, w in zip(difference(p, onehot(y)), pulls, strict=True)])
    s.expect(values, {"adv": adv, "clean": clean})
    s.expect_gradients(s.run.companions["guide"].net, {"clean": guide})


def test_the_mean_over_the_batch_is_the_codes() -> None:
    run = tiny_run(Lbgat(), attack=OneStep())
    step = run.step(tiny_batch())
    ours = float(run.total_loss(step).detach())
    adv, clean, guide = step.student("adv"), step.student(), step.companion("guide")
    divergence = torch.nn.functional.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="sum") / len(adv)
    cross_entropy = torch.nn.functional.cross_entropy(guide, step.y)
    theirs = torch.nn.functional.mse_loss(adv, guide) + cross_entropy + 6 * divergence
    assert ours == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_without_trades_term_clean_images_still_move_the_running_statistics() -> None:
    run = tiny_run(Lbgat(beta=0.0), attack=OneStep())
    before = int(run.student.net.arch.norm.num_batches_tracked)
    run.total_loss(run.step(tiny_batch()))
    assert int(run.student.net.arch.norm.num_batches_tracked) == before + 2


def test_beta_is_not_negative() -> None:
    with pytest.raises(ValueError, match="beta must be at least 0"):
        Lbgat(-1.0)

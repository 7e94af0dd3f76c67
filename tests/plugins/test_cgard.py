"""CGARD: an image for the student and one for the teacher, and the search that makes both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rkd import ops
from rkd.core.errors import Refused
from rkd.core.random import Noise, key
from rkd.core.step import AttackPlan
from rkd.core.trainer import train_step
from rkd.core.types import ThreatModel
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.joint import PgdJoint
from rkd.plugins.attacks.joint import difference as difference_of
from rkd.plugins.methods.cgard import Cgard
from rkd.testing import LinearNet, OneStep, TinyNet, tiny_batch, tiny_net, tiny_run, tiny_step, tiny_teachers
from rkd.testing.tiny import CLASSES, MEAN, STD, cross_entropy
from rkd.training.accumulation import Accumulation

from .by_hand import Setting, difference, kl, softmax


def joint(run) -> None:
    run.attacks["adv"] = AttackPlan(PgdJoint(steps=3), cross_entropy)


@pytest.mark.parametrize("alpha", [0.3, 0.0, 1.0])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_loss_and_gradient(alpha: float, reduction: str) -> None:
    s = Setting(Cgard(alpha, reduction), prepare=joint)
    s.images["adv-teacher"] = s.step.image("adv-teacher")
    share = 1 / CLASSES if reduction == "mean" else 1
    values, rows = [], []
    teacher = zip(s.teacher("robust", "adv-teacher"), s.teacher("robust", "adv"), strict=True)
    for z, (on_own, on_adv) in zip(s.student("adv"), teacher, strict=True):
        q, own, adv = softmax(z), softmax(on_own), softmax(on_adv)
        values.append(share * (alpha * kl(own, q) + (1 - alpha) * kl(adv, q)))
        by_own, by_adv = difference(q, own, share * alpha), difference(q, adv, share * (1 - alpha))
        rows.append([a + b for a, b in zip(by_own, by_adv, strict=True)])
    s.expect(values, {"adv": rows})


def slope(q: list[float], p: list[float]) -> np.ndarray:
    """The gradient of KL(q ‖ p) + KL(p ‖ q) by the logits of q."""
    towards = kl(q, p)
    return np.array([b - a + b * (math.log(b / a) - towards) for a, b in zip(p, q, strict=True)])


def test_search_by_hand() -> None:
    """Each image's six steps of both nets, in float64; those that break the constraint go down the teacher's CE."""
    attacks = {"adv": AttackPlan(PgdJoint(steps=6), cross_entropy)}
    step = tiny_step(net=tiny_net(LinearNet, seed=3), roles=("robust",), attacks=attacks)
    student, teacher = step._student.net.arch, step._teachers["robust"].net.arch
    found, kept = step.image("adv").double().numpy(), step.image("adv-teacher").double().numpy()
    noise = Noise(key(step.noise_key, "adv"), step.batch.index).normal(found.shape[1:]).double().numpy()
    broken = 0

    def answer(arch, x: np.ndarray) -> list[float]:
        weight, bias = (p.detach().double().numpy() for p in (arch.weight, arch.bias))
        return softmax((weight @ ((x.flatten() - MEAN) / STD) + bias).tolist())

    def move(x: np.ndarray, by_logits: np.ndarray, arch, clean: np.ndarray) -> np.ndarray:
        gradient = (arch.weight.detach().double().numpy().T @ by_logits / STD).reshape(x.shape)
        return np.clip(np.clip(x + 2 / 255 * np.sign(gradient), clean - 8 / 255, clean + 8 / 255), 0, 1)

    for place, y in enumerate(step.y.tolist()):
        clean = step.batch.x[place].double().numpy()
        mine, own = np.clip(clean + 0.001 * noise[place], 0, 1), clean
        last, most = own, -math.log(answer(teacher, own)[y])
        for turn in range(7):
            q, p = answer(student, mine), answer(teacher, own)
            holds = -math.log(p[y]) <= most
            last = own if holds else last
            if turn == 6:
                break
            broken += not holds
            by_own = slope(p, q) if holds else np.eye(CLASSES)[y] - p
            mine, own = move(mine, slope(q, p), student, clean), move(own, by_own, teacher, clean)
        assert np.allclose(found[place], mine, atol=1e-6)
        assert np.allclose(kept[place], last, atol=1e-6)
    assert 5 < broken < 40


@pytest.mark.parametrize("threat", [ThreatModel(), ThreatModel("L2", 0.5, 0.125)])
def test_the_teacher_judges_its_image_no_worse(threat: ThreatModel) -> None:
    teachers = tiny_teachers(("robust",))
    teachers["robust"].net = tiny_net(TinyNet, seed=9).eval().requires_grad_(False)
    attacks = {"adv": AttackPlan(PgdJoint(), cross_entropy)}
    step = tiny_step(teachers=teachers, attacks=attacks, threat=threat)
    x, adv = step.image(), step.image("adv")
    own = step.image("adv-teacher")
    for images in (adv, own):
        assert float(ops.image_norm(images - x, threat.norm).max()) <= threat.eps + 1e-6
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    harm, clean = (ops.cross_entropy(step.teacher(view=view), step.y) for view in ("adv-teacher", "clean"))
    assert bool((harm <= clean + 1e-6).all())
    apart, before = (
        difference_of(step.student(view, "eval"), step.teacher(view=teachers_view)).detach()
        for view, teachers_view in (("adv", "adv-teacher"), ("clean", "clean"))
    )
    assert bool((apart > before).all())


def test_no_gradient_reaches_weights_or_the_images() -> None:
    run = tiny_run(Cgard(), attack=PgdJoint(steps=2))
    run.teachers["robust"].net = tiny_net(TinyNet, seed=9).eval().requires_grad_(False)
    batch = tiny_batch()
    train_step(run, batch)
    assert not batch.x.requires_grad
    assert all(p.grad is None for p in run.teachers["robust"].net.parameters())


def test_the_teacher_of_the_role_is_asked() -> None:
    teachers = tiny_teachers(("clean", "robust"))
    for role, other in (("clean", "robust"), ("robust", "clean"), (None, "clean")):
        before = teachers[other].asked
        step = tiny_step(teachers=teachers, attacks={"adv": AttackPlan(PgdJoint(steps=1, role=role), cross_entropy)})
        step.image("adv")
        assert teachers[other].asked == before


def test_micro_batches_find_the_same_images() -> None:
    def tiny(**parts):
        run = tiny_run(Cgard(), attack=PgdJoint(steps=2), student=NetStudent(tiny_net(LinearNet, seed=3)), **parts)
        run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.2)
        return run

    runs = [tiny(), tiny(backward=Accumulation(micro_batches=4))]
    losses = [float(train_step(run, tiny_batch())) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(*(run.student.net.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_another_attack_makes_no_image_for_the_teacher_unless_one_is_named() -> None:
    run = tiny_run(Cgard(), attack=OneStep())
    with pytest.raises(Refused, match="type --attack adv-teacher=NAME"):
        run.total_loss(run.step(tiny_batch()))
    run.attacks["adv-teacher"] = AttackPlan(OneStep(), cross_entropy)
    assert run.total_loss(run.step(tiny_batch())).isfinite()
    joint(run)
    with pytest.raises(Refused, match="'adv-teacher' beside its own, and something else too"):
        run.total_loss(run.step(tiny_batch()))


def test_without_a_teacher_there_is_no_search() -> None:
    step = tiny_step(attacks={"adv": AttackPlan(PgdJoint(), cross_entropy)})
    with pytest.raises(Refused, match="a teacher is needed"):
        step.image("adv")


@pytest.mark.parametrize(("made", "word"), [
    (lambda: Cgard(alpha=1.5), "alpha"), (lambda: PgdJoint(steps=0), "steps"),
    (lambda: PgdJoint(eps=8, norm="Linf"), "8/255"), (lambda: PgdJoint(norm="L7"), "norm"),
    (lambda: PgdJoint(step_size=0), "step_size"),
])  # fmt: skip
def test_wrong_options_are_refused(made, word: str) -> None:
    with pytest.raises((ValueError, Refused), match=word):
        made()

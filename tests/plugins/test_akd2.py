"""AKD2 and KD+SWA against plain loops, and how their teachers are prepared."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.plugins.extensions.swa import Swa
from rkd.plugins.methods.akd2 import Akd2, KdSwa
from rkd.registry.schedules import Ramp
from rkd.testing import OneStep, tiny_batch, tiny_run
from rkd.testing.tiny import CLASSES
from rkd.workflow.resolve import resolve

from .by_hand import Setting, difference, kl, onehot, softmax


@pytest.mark.parametrize(
    ("loss", "robust", "clean", "T", "share", "smoothing"),
    [
        (Akd2(), 0.5, 0.25, 1.0, 1.0, 0.0),
        (KdSwa(), 0.6, 0.1, 2.0, 1.0, 0.0),
        (Akd2(0.1, 0.9, 5.0, "mean"), 0.1, 0.9, 5.0, 1 / CLASSES, 0.0),
        (Akd2(0.0, 0.2, label_smoothing=0.4), 0.0, 0.2, 1.0, 1.0, 0.4),
    ],
)
def test_akd2(loss: Akd2, robust: float, clean: float, T: float, share: float, smoothing: float) -> None:
    """Both teachers see the attacked images, and T² makes up for the smaller gradients at T."""
    s = Setting(loss)
    values, gradients = [], []
    everybody = zip(s.student("adv"), s.teacher("robust", "adv"), s.teacher("clean", "adv"), s.y, strict=True)
    for z, t_robust, t_clean, y in everybody:
        p_robust, p_clean, q, one = softmax(t_robust, T), softmax(t_clean, T), softmax(z, T), softmax(z)
        target = [(1 - smoothing) * v + smoothing / CLASSES for v in onehot(y)]
        ce = -sum(t * math.log(v) for t, v in zip(target, one, strict=True))
        labels = 1 - robust - clean
        soft = T**2 * share * (robust * kl(p_robust, q) + clean * kl(p_clean, q))
        values.append(labels * ce + soft)
        parts = (
            difference(one, target, labels),
            difference(q, p_robust, T * share * robust),
            difference(q, p_clean, T * share * clean),
        )
        gradients.append([sum(g) for g in zip(*parts, strict=True)])
    s.expect(values, {"adv": gradients})


def test_cross_entropy_with_probabilities_has_the_gradient_of_the_divergence() -> None:
    """What Chen et al. write: T² times the cross-entropy with the teacher's probabilities."""
    run = tiny_run(loss := KdSwa(), attack=OneStep())
    step = run.step(tiny_batch())
    ours, z = loss(step)["robust"], step.student("adv")
    soft = (step.teacher("robust", "adv") / 2).softmax(1)
    theirs = 4 * torch.nn.functional.cross_entropy(z / 2, soft, reduction="none")
    entropy = -(soft * soft.log()).sum(1)
    torch.testing.assert_close(theirs, ours + 4 * entropy)
    gradients = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (theirs, ours)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["akd2", "kd-swa"])
def test_missing_teachers_are_of_the_students_architecture(name: str, catalog) -> None:
    plan = resolve({"loss": {"name": name}, "student": {"model": "small-cnn", "width": 4}}, catalog)
    assert [(t.role, t.model, t.options) for t in plan.teachers] == [
        ("robust", "small-cnn", {"width": 4}), ("clean", "small-cnn", {"width": 4}),
    ]  # fmt: skip
    assert {role: recipe["loss"]["name"] for role, recipe in plan.loss.prepare.items()} == {
        "robust": "pgd-at", "clean": "ce",
    }  # fmt: skip


def test_kd_swa_averages_weights_from_epoch_55_of_200_on(catalog) -> None:
    (extension,) = resolve({"loss": {"name": "kd-swa"}}, catalog).extensions.values()
    assert isinstance(extension, Swa) and extension.since == 55 / 200
    assert not resolve({"loss": {"name": "kd-swa"}, "extensions": {"swa": False}}, catalog).extensions


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"robust": -0.1}, "robust"),
        ({"clean": 1.1}, "clean"),
        ({"robust": 0.8, "clean": 0.3}, r"robust \+ clean must be between 0 and 1, got 1.1"),
        ({"robust": Ramp(0, 0.9)}, r"robust \+ clean"),
        ({"T": 0.0}, "T must be"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_numbers_that_make_no_sense(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Akd2(**options)


def test_labels_may_have_no_weight() -> None:
    """1 - 0.9 - 0.1 is a little less than 0 in float64."""
    run = tiny_run(loss := Akd2(0.9, 0.1), attack=OneStep())
    assert abs(loss._labels(0)) < 1e-9
    assert run.total_loss(run.step(tiny_batch())).isfinite()

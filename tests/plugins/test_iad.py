"""IAD, AdaIAD and IAD-II against plain loops, and what the published code does differently."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rkd.core.run import TrainState
from rkd.plugins.methods.akd2 import Akd2
from rkd.plugins.methods.iad import AdaIad, Iad
from rkd.plugins.methods.iad2 import Iad2
from rkd.registry.schedules import Ramp
from rkd.testing import OneStep, tiny_batch, tiny_run
from rkd.testing.tiny import CLASSES, MEAN, STD

from .by_hand import Rows, Setting, difference, kl, onehot, softmax


def at_epoch(loss, epoch: int) -> Setting:
    """In a training of ten epochs."""
    return Setting(loss, state=TrainState(epoch=epoch), epochs=10)


def own_answer(z: list[float], z_adv: list[float]) -> tuple[float, list[float], list[float]]:
    """KL(S(x) ‖ S(x')) and its gradients by both."""
    p, q = softmax(z), softmax(z_adv)
    distance = kl(p, q)
    return distance, [a * (math.log(a / b) - distance) for a, b in zip(p, q, strict=True)], difference(q, p)


def add(*rows: list[float]) -> list[float]:
    return [sum(values) for values in zip(*rows, strict=True)]


def times(factor: float, row: list[float]) -> list[float]:
    return [factor * value for value in row]


def expected(s: Setting, view: str, T: float, beta: float, weigh: bool, warm: bool) -> tuple[list[float], Rows, Rows]:
    """Values, and gradients by the logits on attacked and clean images; `view`: that of the teacher's target."""
    values, adv, clean = [], [], []
    everybody = zip(
        s.student(), s.student("adv"), s.teacher("robust", view), s.teacher("robust", "adv"), s.y, strict=True
    )
    for z, z_adv, target, guide, y in everybody:
        sure = 1.0 if warm else softmax(guide)[y] ** beta
        before = sure if weigh else 1.0
        p, q = softmax(target, T), softmax(z_adv, T)
        distance, by_clean, by_adv = own_answer(z, z_adv)
        values.append(before * T**2 * kl(p, q) + (1 - sure) * distance)
        adv.append(add(difference(q, p, before * T), times(1 - sure, by_adv)))
        clean.append(times(1 - sure, by_clean))
    return values, adv, clean


@pytest.mark.parametrize("epoch", [2, 3])
@pytest.mark.parametrize(("T", "beta", "weigh"), [(1.0, 0.1, True), (1.0, 0.1, False), (4.0, 2.0, True)])
def test_iad(T: float, beta: float, weigh: bool, epoch: int) -> None:
    """The target is the teacher's clean answer, its weight follows from the attacked image, from epoch 3 of 10 on.
    Without `weigh` as in the published code."""
    s = at_epoch(Iad(T, beta, weigh_teacher=weigh), epoch)
    values, adv, clean = expected(s, "clean", T, beta, weigh, warm=epoch < 3)
    assert (max(abs(g) for row in clean for g in row) > 1e-3) == (epoch == 3)
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize("epoch", [2, 3])
@pytest.mark.parametrize(("options", "weigh"), [({}, False), ({"weigh_teacher": True}, True)])
def test_adaiad(options: dict, weigh: bool, epoch: int) -> None:
    s = at_epoch(AdaIad(**options), epoch)
    values, adv, clean = expected(s, "adv", 30.0, 0.1, weigh, warm=epoch < 3)
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize(("T", "reduction"), [(1.0, "batchmean"), (3.0, "mean")])
def test_iad2(T: float, reduction: str, epoch: int) -> None:
    """T² multiplies the student's own answer, which no temperature softens, too."""
    s = at_epoch(Iad2(T=T, reduction=reduction, beta=0.5), epoch)
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    everybody = zip(
        s.student(), s.student("adv"), s.teacher("robust", "adv"), s.teacher("clean", "adv"), s.y, strict=True
    )
    for z, z_adv, robust, natural, y in everybody:
        sure = 1.0 if epoch < 2 else softmax(robust)[y] ** 0.5
        p_robust, p_natural, q, one = softmax(robust, T), softmax(natural, T), softmax(z_adv, T), softmax(z_adv)
        distance, by_clean, by_adv = own_answer(z, z_adv)
        own = 0.5 * (1 - sure) * T**2 * share
        values.append(
            -0.25 * math.log(one[y])
            + T**2 * share * (0.5 * sure * kl(p_robust, q) + 0.25 * kl(p_natural, q))
            + own * distance
        )
        adv.append(add(
            difference(one, onehot(y), 0.25), difference(q, p_robust, 0.5 * sure * T * share),
            difference(q, p_natural, 0.25 * T * share), times(own, by_adv),
        ))  # fmt: skip
        clean.append(times(own, by_clean))
    s.expect(values, {"adv": adv, "clean": clean})


def test_before_it_begins_iad2_is_akd2() -> None:
    ours, theirs = at_epoch(Iad2(), 1), at_epoch(Akd2(), 1)
    assert float(ours.loss) == float(theirs.loss)


@pytest.mark.parametrize(("loss", "first"), [(Iad(), "adv"), (Iad2(), "adv"), (AdaIad(), "clean")])
def test_the_order_of_forwards_is_that_of_the_code(loss, first: str) -> None:
    run = tiny_run(loss, attack=OneStep())
    seen = []
    run.student.net.arch.register_forward_pre_hook(
        lambda arch, inputs: seen.append(inputs[0]) if arch.training else None
    )
    step = run.step(tiny_batch())
    run.total_loss(step)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], (step.image(first) - MEAN) / STD)


@pytest.mark.parametrize("loss", [Iad(begin=0.0), AdaIad(begin=0.0), Iad2(begin=0.0)])
def test_one_hot_probabilities_mean_the_same_as_labels(loss) -> None:
    batch = tiny_batch()
    soft = replace(batch, y=torch.nn.functional.one_hot(batch.y, CLASSES).float())
    runs = [tiny_run(loss, attack=OneStep()) for _ in range(2)]
    losses = [run.total_loss(run.step(each)).detach() for run, each in zip(runs, (batch, soft), strict=True)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("method", [Iad, AdaIad, Iad2])
@pytest.mark.parametrize(
    ("options", "word"),
    [({"T": 0.0}, "T must"), ({"beta": Ramp(-1, 0)}, "beta"), ({"begin": 1.5}, "begin"), ({"begin": -0.1}, "begin")],
)
def test_numbers_that_make_no_sense(method, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        method(**options)

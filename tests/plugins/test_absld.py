"""ABSLD: loss, search and class-wise temperatures against plain float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rkd.core.errors import Refused
from rkd.core.run import Run, TrainState
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.absld import Absld, kl_class_temperature
from rkd.plugins.methods.rslad import Rslad
from rkd.plugins.schedulers.class_temperature import ClassTemperature
from rkd.registry.schedules import Drops
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run, tiny_step
from rkd.testing.tiny import CLASSES, MEAN, STD
from rkd.training.accumulation import Accumulation
from rkd.training.dry_run import dry_step

from .test_methods import Setting, difference, kl, softmax

ADV, CLEAN = [0.5, 1.0, 2.0, 3.0], [1.5, 0.7, 1.0, 4.0]
KNOBS = {"class_T.adv": torch.tensor(ADV), "class_T.clean": torch.tensor(CLEAN)}


@pytest.mark.parametrize(("alpha", "reduction"), [(5 / 6, "batchmean"), (0.3, "mean")])
def test_loss_and_gradient(alpha: float, reduction: str) -> None:
    """Each sample's label chooses the temperature of the teacher, one for each term."""
    s = Setting(Absld(alpha, reduction), state=TrainState(knobs=KNOBS))
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    for z, z_adv, t, y in zip(s.student(), s.student("adv"), s.teacher("robust"), s.y, strict=True):
        p_adv, p, q_adv, q = softmax(t, ADV[y]), softmax(t, CLEAN[y]), softmax(z_adv), softmax(z)
        values.append(share * (alpha * kl(p_adv, q_adv) + (1 - alpha) * kl(p, q)))
        adv.append(difference(q_adv, p_adv, share * alpha))
        clean.append(difference(q, p, share * (1 - alpha)))
    s.expect(values, {"adv": adv, "clean": clean})


def test_without_a_scheduler_it_is_rslad() -> None:
    assert float(Setting(Absld()).loss) == float(Setting(Rslad()).loss)


def test_soft_labels_mix_the_temperatures() -> None:
    batch = tiny_batch(soft=True)
    run = tiny_run(Absld(), attack=OneStep(), state=TrainState(knobs=KNOBS))
    step = run.step(batch)
    run.total_loss(step)
    for place, y in enumerate(batch.y.double().tolist()):
        T = sum(share * t for share, t in zip(y, ADV, strict=True))
        p = softmax(step.teacher()[place].tolist(), T)
        expected = kl(p, softmax(step.student("adv")[place].tolist()))
        assert float(run.terms["adv"][place]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_search_follows_the_tempered_teacher() -> None:
    step = tiny_step(net=tiny_net(LinearNet, seed=3), roles=("robust",), knobs=KNOBS)
    student, batch = step._student.net.arch, tiny_batch()
    x = (batch.x + 0.03).clamp(0, 1).requires_grad_()
    score = kl_class_temperature(step, step._student.net, x)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    score = score.detach()
    weight = student.weight.detach().double().numpy()
    flat = (x.detach().double().numpy().reshape(8, -1) - MEAN) / STD
    z = (flat @ weight.T + student.bias.detach().double().numpy()).tolist()
    for place, (t, y) in enumerate(zip(step.teacher().tolist(), batch.y.tolist(), strict=True)):
        p, q = softmax(t, ADV[y]), softmax(z[place])
        assert float(score[place]) == pytest.approx(kl(p, q), rel=1e-4)
        expected = np.array(difference(q, p)) @ weight / STD
        assert np.allclose(gradient[place].flatten().numpy(), expected, rtol=1e-3, atol=1e-5)


class Script:
    """The official script's update at the end of an epoch, in Python numbers; the mean instead of the sum if asked."""

    def __init__(self, rate: float, sums: bool) -> None:
        self.rate, self.sums = rate, sums
        self.T = {view: [1.0] * CLASSES for view in ("adv", "clean")}
        self.start()

    def start(self) -> None:
        self.losses: dict[str, list[list[float]]] = {view: [[] for _ in range(CLASSES)] for view in self.T}

    def see(self, view: str, logits: list, labels: list) -> None:
        for z, y in zip(logits, labels, strict=True):
            self.losses[view][y].append(-math.log(softmax(z)[y]))

    def end_epoch(self, lr_scale: float) -> None:
        for view, losses in self.losses.items():
            risk = [sum(row) if self.sums else sum(row) / len(row) for row in losses]
            gap = [r - sum(risk) / CLASSES for r in risk]
            most = max(abs(g) for g in gap)
            moved = [t - self.rate * lr_scale * g / most for t, g in zip(self.T[view], gap, strict=True)]
            self.T[view] = [min(max(t, 0.5), 5.0) for t in moved]
        self.start()


def tiny(scheduler: ClassTemperature, **settings) -> Run:
    run = tiny_run(Absld(), attack=OneStep(), schedulers={"class-temperature": scheduler}, **settings)
    run.student = NetStudent(tiny_net(LinearNet, seed=3))
    run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.2)
    return run


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("aliased", [False, True])
def test_temperatures_follow_the_official_script(sums: bool, aliased: bool) -> None:
    """Once an epoch, as many updates as epochs; a step after the epoch's last, as the docstring says."""
    scheduler = ClassTemperature(rate=0.4, updates=6, sums=sums, aliased=aliased)
    run = tiny(scheduler, lr_schedule=Drops(1.0, (0.5,), 0.1), epochs=6, batch_size=6)
    script = Script(0.4, sums)
    for epoch in range(run.epochs):
        for number, batch in enumerate(run.loader.batches(epoch)):
            run.state.epoch, run.state.batch = epoch, number
            step = run.step(batch)
            run.total_loss(step).backward()
            if number == 0 and epoch:
                script.end_epoch(1.0 if epoch < 3 else 0.1)
            for view in script.T:
                script.see(view, step.student(view).tolist(), batch.y.tolist())
                both = [a * c for a, c in zip(script.T["adv"], script.T["clean"], strict=True)]
                expected = both if aliased else script.T[view]
                assert run.state.knobs[f"class_T.{view}"].tolist() == pytest.approx(expected, abs=2e-5)
            run.optimizer.step()
            run.optimizer.zero_grad()
    assert min(script.T["adv"]) < 0.9, "a hard class is taught with sharper labels"
    assert max(script.T["adv"]) > 1.1


def test_means_do_not_take_a_frequent_class_for_a_hard_one() -> None:
    """Unequal classes: one class twice as often, and learned equally well."""
    y = torch.tensor([0, 0, 1, 2])
    found = {}
    for sums in (False, True):
        scheduler = ClassTemperature(rate=0.4, updates=10, sums=sums)
        for progress in (0.0, 0.1):
            step = tiny_step(tiny_batch(4).select(torch.tensor([0, 0, 1, 2])), progress=progress)
            step.students = lambda *views, mode="train": (torch.zeros(4, CLASSES),) * 2  # the same loss for all
            assert torch.equal(step.y, y)
            found[sums] = scheduler.update(step, {})["class_T.adv"].tolist()
    assert found[False] == [1.0, 1.0, 1.0, 1.0]
    assert found[True] == pytest.approx([0.6, 1.2, 1.2, 1.0]), "the last class was not seen"


def test_micro_batches_see_what_the_whole_batch_sees() -> None:
    runs = [
        tiny(ClassTemperature(updates=2)),
        tiny(ClassTemperature(updates=2), backward=Accumulation(micro_batches=4)),
    ]
    for run in runs:
        for batch in run.loader.batches(0):
            train_step(run, batch)
            run.state.batch += 1
    for name, value in runs[0].state.knobs.items():
        assert (value != 1).any()
        assert torch.allclose(value, runs[1].state.knobs[name], atol=1e-5), name
    for a, b in zip(*(run.student.net.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_loss_that_would_not_use_the_temperatures_is_refused() -> None:
    run = tiny_run(Rslad(), attack=OneStep(), schedulers={"class-temperature": ClassTemperature()})
    with pytest.raises(Refused, match=r"class_T\.adv"):
        dry_step(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": -1.0}, "rate must be at least 0"),
        ({"updates": 0}, "updates must be at least 1"),
        ({"low": 2.0}, "with 1 between them, got 2 and 5"),
        ({"low": 0.0}, "low and high must be positive"),
    ],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassTemperature(**options)

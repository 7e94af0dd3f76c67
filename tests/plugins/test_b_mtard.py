"""B-MTARD: both balances against the official recurrence in Python numbers, step by step."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.errors import Refused
from rkd.core.run import Run
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.b_mtard import BMtard
from rkd.plugins.methods.mtard import Mtard
from rkd.plugins.schedulers.anl import AdaptiveNormalization
from rkd.plugins.schedulers.entropy_balance import EntropyBalance
from rkd.registry.catalog import Catalog
from rkd.registry.defaults import method_defaults
from rkd.registry.schedules import Drops
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run
from rkd.training.accumulation import Accumulation

from .test_methods import Recurrence, kl, softmax


class Temperatures:
    """The official script's update: negative entropies, a ratio of them, 1e-5 in the logarithm."""

    def __init__(self, rate: float, high: float = 10.0) -> None:
        self.rate, self.high = rate, high
        self.robust, self.clean = 1.0, 1.0

    def update(self, robust: list, clean: list, lr_scale: float) -> None:
        h_robust, h_clean = self.negative_entropy(robust, self.robust), self.negative_entropy(clean, self.clean)
        rate = self.rate * lr_scale
        self.robust = self.clipped(self.robust - rate * math.copysign(1, h_robust / h_clean - 1))
        self.clean = self.clipped(self.clean - rate * math.copysign(1, h_clean / h_robust - 1))

    def clipped(self, T: float) -> float:
        return min(max(T, 1.0), self.high)

    @staticmethod
    def negative_entropy(rows: list, T: float) -> float:
        return sum(sum(p * math.log(p + 1e-5) for p in softmax(z, T)) for z in rows) / len(rows)


def tiny(rate: float = 0.2, **settings) -> Run:
    schedulers = {"anl": AdaptiveNormalization(0.3), "entropy-balance": EntropyBalance(rate=rate)}
    run = tiny_run(BMtard(), attack=OneStep(), schedulers=schedulers, **settings)
    run.student = NetStudent(tiny_net(LinearNet, seed=3))
    run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.5)
    run.teachers["robust"].net.arch.weight.mul_(0.2)  # far less sure than the clean one
    return run


def test_both_balances_follow_the_official_recurrence() -> None:
    """Weights act in the step whose losses they come from, temperatures in the next; both rates fall with the
    learning rate's."""
    run = tiny(lr_schedule=Drops(1.0, (0.5,), 0.1), epochs=4, lr=0.5)
    weights, temperatures = Recurrence(0.3), Temperatures(0.2)
    for epoch in range(run.epochs):
        for number, batch in enumerate(run.loader.batches(epoch)):
            run.state.epoch, run.state.batch = epoch, number
            step = run.step(batch)
            robust, clean = step.teacher("robust", "adv").tolist(), step.teacher("clean").tolist()
            adv_rows, clean_rows = (logits.tolist() for logits in step.students("adv", "clean"))
            adv, natural = (
                sum(kl(softmax(t, T), softmax(z)) for t, z in zip(teacher, student, strict=True)) / len(teacher)
                for teacher, T, student in (
                    (robust, temperatures.robust, adv_rows), (clean, temperatures.clean, clean_rows),
                )
            )  # fmt: skip
            loss = run.total_loss(step)
            scale = 1.0 if run.progress < 0.5 else 0.1
            weights.update(adv, natural, scale)
            temperatures.update(robust, clean, scale)
            expected = weights.adversarial * adv + weights.natural * natural
            assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
            assert float(run.state.knobs["T.robust"]) == pytest.approx(temperatures.robust, abs=1e-6)
            assert float(run.state.knobs["T.clean"]) == pytest.approx(temperatures.clean, abs=1e-6)
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
    assert temperatures.clean > 1.5, "the surer teacher is made hotter"
    assert temperatures.robust < 1.5, "the other stays near the least temperature"


def test_temperatures_stay_within_their_bounds() -> None:
    run = tiny(rate=100.0)
    for batch in run.loader.batches(0):
        train_step(run, batch)
    assert {float(run.state.knobs[name]) for name in ("T.robust", "T.clean")} <= {1.0, 10.0}


def test_teachers_that_are_equally_sure_keep_their_temperatures() -> None:
    run = tiny()
    run.teachers["robust"].net.arch.weight.zero_()
    run.teachers["clean"].net = run.teachers["robust"].net
    train_step(run, tiny_batch())
    assert float(run.state.knobs["T.robust"]) == float(run.state.knobs["T.clean"]) == 1.0


def test_micro_batches_balance_as_the_whole_batch_does() -> None:
    runs = [tiny(), tiny(backward=Accumulation(micro_batches=4))]
    for run in runs:
        for batch in run.loader.batches(0):
            train_step(run, batch)
    whole, parts = runs
    for name, value in whole.state.knobs.items():
        assert float(value) == pytest.approx(float(parts.state.knobs[name]), rel=1e-5), name
    for a, b in zip(whole.student.net.parameters(), parts.student.net.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_it_brings_both_schedulers(catalog: Catalog) -> None:
    brought = method_defaults(BMtard(), {}, catalog)["schedulers"]
    assert brought == {"anl": {}, "entropy-balance": {}}


def test_one_teacher_is_not_enough() -> None:
    run = tiny_run(Mtard(), attack=OneStep(), schedulers={"entropy-balance": EntropyBalance()})
    del run.teachers["clean"]
    with pytest.raises(Refused, match="--teacher clean=MODEL"):
        run.total_loss(run.step(tiny_batch()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": -0.1}, "rate must be at least 0"),
        ({"low": 0.0}, "low and high must be positive"),
        ({"low": 3.0, "high": 2.0}, "got 3 and 2"),
    ],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EntropyBalance(**options)

"""The state of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rkd.core.errors import DataError
from rkd.core.hooks import hookimpl
from rkd.core.run import Checkpoints, Monitor, Processes, Run, TrainState
from rkd.core.step import Step
from rkd.core.trainer import advance, fit
from rkd.testing import OneStep, tiny_run

from .losses import Adversarial, Clean, Setter, weights


def test_a_checkpoint_of_other_data_is_refused() -> None:
    run = tiny_run(Clean())
    state = run.state_dict() | {"data": "other"}
    with pytest.raises(DataError, match=r"data set 'tiny' has changed.*'other' then, 'tiny' now"):
        run.load_state_dict(state)


def test_progress_and_learning_rate_follow_the_state() -> None:
    run = tiny_run(Clean(), epochs=4, lr=0.2, lr_schedule=lambda progress: 1 - progress)  # two batches an epoch
    run.state.epoch, run.state.batch, run.state.rollbacks = 1, 1, 2
    assert run.progress == 1.5 / 4
    assert run.lr_scale == pytest.approx((1 - 1.5 / 4) / 4)


def test_a_run_goes_on_in_another_objects_state() -> None:
    def make() -> Run:
        return tiny_run(Clean(), epochs=2, schedulers={"s": Setter({"weight.a": torch.tensor(0.5)})})

    first, whole = make(), make()
    fit(whole)
    for batch in first.loader.batches(first.state.epoch, first.state.batch):
        advance(first, batch)
        break
    second = make()
    second.load_state_dict(first.state_dict())
    assert (second.state.epoch, second.state.batch, second.state.means.steps) == (0, 1, 1)
    assert second.state.knobs == {"weight.a": torch.tensor(0.5)}
    fit(second)
    assert torch.equal(weights(second), weights(whole))
    for line, expected in zip(second.state.history, whole.state.history, strict=True):
        assert line | {"seconds": 0} == expected | {"seconds": 0}


def test_of_a_batch_that_all_processes_do_whole_the_first_hears() -> None:
    heard = []

    class Listener:
        @hookimpl
        def rkd_attack_query(self, step: Step, view: str) -> None:
            heard.append(len(step.batch))

    class Two(Processes):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def counted(self, samples: int) -> bool:
            return samples >= 4 or self.rank == 0

    for rank, expected in ((0, [10, 6]), (1, [10])):
        heard.clear()
        run = tiny_run(Adversarial(), attack=OneStep(), extensions={"it": Listener()}, ranks=Two(rank), batch_size=10)
        run.loader.size = lambda number: (10, 2)[number]
        for number, batch in enumerate(run.loader.batches(0)):
            run.state.batch = number
            run.step(batch).image("adv")
        assert heard == expected


def test_without_collaborators_it_trains_plainly() -> None:
    plain, usual = tiny_run(Clean(), epochs=2), tiny_run(Clean(), epochs=2)
    plain.monitor, plain.checkpoints = Monitor(), Checkpoints()
    fit(plain)
    fit(usual)
    assert torch.equal(weights(plain), weights(usual))
    assert plain.checkpoints.newest is None


def test_a_trial_is_a_run_with_a_state_of_its_own() -> None:
    run = tiny_run(Clean(), epochs=2)
    trial = replace(run, state=TrainState())
    trial.state.epoch, trial.state.knobs["T"] = 1, 4.0
    assert (run.state.epoch, run.state.knobs) == (0, {})
    assert trial.student is run.student


def test_the_seconds_of_all_sessions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    state = TrainState(seconds=7.0)
    now = 150.0
    state.start_clock()
    now = 152.0
    assert state.tick() == state.seconds == 9.0

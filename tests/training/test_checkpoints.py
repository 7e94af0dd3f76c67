"""A training that is stopped goes on exactly; when checkpoints are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from rkd.core.errors import Stopped
from rkd.core.hooks import hookimpl
from rkd.core.run import Run
from rkd.core.trainer import fit
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.registry.schedules import Ramp
from rkd.storage.runfolder import RunFolder
from rkd.testing import OneStep, tiny_run
from rkd.training.checkpoints import Checkpointer, CheckpointPolicy
from rkd.training.divergence import DivergenceMonitor, copied
from rkd.training.validation import chosen_net

from ..core.losses import Adversarial, Clean, weights
from .test_validation import validation


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_training_goes_on_exactly(cut: int, tmp_path) -> None:
    """Stopped after `cut` of four epochs and continued in another process's objects: the same bits."""

    class Stop(Exception):
        pass

    class Stopper:
        @hookimpl
        def rkd_run_start(self, run):
            self.epochs = 0

        @hookimpl
        def rkd_after_update(self, run):
            if run.state.epoch == cut:
                raise Stop

    def make(folder, extensions=None) -> Run:
        from rkd.plugins.schedulers.anl import AdaptiveNormalization

        run = tiny_run(
            Adversarial(), attack=OneStep("train"), epochs=4, lr=0.2, lr_schedule=Ramp(1, 0.1),
            schedulers={"anl": AdaptiveNormalization(0.3)}, extensions=extensions, checkpoints=Checkpointer(folder),
        )  # fmt: skip
        run.validate = validation(run)
        return run

    whole = make(RunFolder.create(tmp_path / "whole"))
    fit(whole)
    folder = RunFolder.create(tmp_path / "parts")
    with pytest.raises(Stop):
        fit(make(folder, {"stop": Stopper()}))
    rest = make(folder)
    rest.load_state_dict(folder.load()[0])
    assert rest.state.epoch == cut
    fit(rest)
    assert torch.equal(weights(rest), weights(whole))
    assert torch.equal(*(torch.cat([p.flatten() for p in chosen_net(r).parameters()]) for r in (rest, whole)))
    for name, buffer in rest.student.net.named_buffers():
        assert torch.equal(buffer, dict(whole.student.net.named_buffers())[name])
    assert rest.state.best == whole.state.best
    drop = {"seconds"}
    kept = [{k: v for k, v in line.items() if k not in drop} for line in folder.history()]
    assert kept == [{k: v for k, v in line.items() if k not in drop} for line in whole.checkpoints.folder.history()]


@dataclass
class StopAt:
    """Asks for a stop when it is asked for the `at`-th time, and counts."""

    at: int
    asked: int = 0

    @hookimpl
    def rkd_stop(self, run):
        self.asked += 1
        return self.asked == self.at or None


def resumable(folder: RunFolder | None, stop: StopAt, on_nan: str = "stop", loss: Any = None) -> Run:
    """Two epochs of three steps with everything that has a state."""
    from rkd.plugins.extensions.awp import Awp
    from rkd.plugins.extensions.ema import Ema
    from rkd.plugins.schedulers.anl import AdaptiveNormalization

    run = tiny_run(
        loss or Adversarial(), attack=OneStep("train"), epochs=2, lr=0.2, lr_schedule=Ramp(1, 0.1), batch_size=6,
        schedulers={"anl": AdaptiveNormalization(0.3)}, conversion=AuxiliaryBatchNorm(),
        checkpoints=Checkpointer(folder), monitor=DivergenceMonitor(on_nan),
        extensions={"ema": Ema(0.5), "awp": Awp(), "stop": stop},
    )  # fmt: skip
    run.student.net.arch.head = torch.nn.Sequential(torch.nn.Dropout(0.3), run.student.net.arch.head)
    run.optimizer = torch.optim.AdamW(run.student.net.parameters(), 0.2)
    run.validate = validation(run)
    return run


def ending(run: Run) -> tuple[str, list[dict[str, Any]], Any]:
    """Everything that a training leaves, to be compared bit for bit."""
    state = copied(run.state_dict())  # with lists for tuples, as files know no others
    state.pop("seconds")
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in state.pop("history")]
    folder = run.checkpoints.folder
    lines = folder.history() if folder else []
    with torch.no_grad():
        torch.set_printoptions(precision=20, threshold=10**6)
        try:
            return str(state), history, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        finally:
            torch.set_printoptions(profile="default")


@pytest.mark.slow
def test_a_training_stopped_anywhere_goes_on_exactly(tmp_path) -> None:
    """After each step and in each validation, also when it is stopped again and again."""
    whole = resumable(RunFolder.create(tmp_path / "whole"), counter := StopAt(0))
    fit(whole)
    assert counter.asked > 2 * 3 + 2, "after every step, and in the validations"
    for at in range(1, counter.asked + 1):
        folder = RunFolder.create(tmp_path / f"stopped-{at}")
        with pytest.raises(Stopped, match=r"stopped after (step \d/3 of )?epoch \d"):
            fit(resumable(folder, StopAt(at)))
        rest = resumable(folder, StopAt(0))
        rest.load_state_dict(folder.load()[0])
        folder.rewrite_history(rest.state.history)
        fit(rest)
        assert ending(rest) == ending(whole), at
        kept = [torch.cat([p.flatten() for p in chosen_net(run).parameters()]) for run in (rest, whole)]
        assert torch.equal(*kept)
    folder = RunFolder.create(tmp_path / "often")
    for _ in range(100):
        run = resumable(folder, StopAt(6))  # a validation asks four times, and is begun anew
        if folder.saved():
            run.load_state_dict(folder.load()[0])
            folder.rewrite_history(run.state.history)
        try:
            fit(run)
        except Stopped:
            continue
        break
    assert ending(run) == ending(whole)


def test_checkpoints_by_epochs_and_by_minutes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minutes are the monotonic clock's: the wall clock may jump as it likes."""
    now = [1000.0]
    monkeypatch.setattr("rkd.training.checkpoints.time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: -now[0])
    places = []

    class Clock:
        @hookimpl
        def rkd_after_update(self, run):
            now[0] += 40  # two steps an epoch, 80 s

        @hookimpl
        def rkd_stop(self, run):
            places.append(folder.place())

    folder = RunFolder.create(tmp_path / "run")
    checkpoints = Checkpointer(folder, CheckpointPolicy(epochs=3, minutes=2))
    run = tiny_run(Clean(), epochs=5, checkpoints=checkpoints, extensions={"c": Clock()})
    fit(run)
    # Every 120 s, and with epoch 3.
    expected = [None, None, (1, 1, 2), (1, 1, 2), (1, 1, 2), (2, 2, 2), (3, 0, 2), (3, 0, 2), (4, 1, 2), (4, 1, 2)]
    assert places == expected
    assert folder.place() == (5, 0, 2)
    assert run.state.history[-1]["seconds"] == 400

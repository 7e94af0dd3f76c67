"""A training and an evaluation, drawn on terminals of any width and told in a pipe."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rkd.cli import progress
from rkd.cli.progress import Display, Training
from rkd.cli.terminal import Terminal
from rkd.core.run import TrainState

from .conftest import plain


def training(terminal: Terminal) -> Training:
    shown = Training("robust teacher wrn34-10", terminal)
    shown.epoch, shown.epochs, shown.batch, shown.batches = 2, 80, 17, 390
    shown.values = {"loss": 1.25, "loss.adv": 0.75, "loss.clean": 0.5, "weight.adv": 0.6, "weight.clean": 0.4}
    shown.checked = {"clean": 0.9512, "robust": 0.5, "epoch": 2}
    return shown


@pytest.mark.parametrize("width", [30, 60, 80, 120, 250])
def test_the_training_fits_any_width(screen, width: int) -> None:
    terminal, stream = screen(width)
    terminal.err.print(training(terminal).draw())
    lines = plain(stream)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("robust t")
    if width >= 80:
        assert "epoch 3/80" in lines[0] and "left" in lines[0]
        assert "loss 1.250 (adv 0.750, clean 0.500); weights adv 0.600, clean 0.400" in lines[1]
        assert "validation after epoch 2: clean 95.1 %, robust 50.0 %" in lines[2]


class FakeRun(SimpleNamespace):
    """A run whose losses may be looked at only now and then."""

    looked = 0

    @property
    def terms(self) -> dict[str, torch.Tensor]:
        self.looked += 1
        return {"adv": torch.ones(4), "clean": torch.zeros(4)}


def test_the_device_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    state = TrainState(knobs={"weight.adv": torch.tensor(0.7), "T.robust": 2.0})
    run = FakeRun(state=state, epochs=2, loader=[None] * 500, device="cpu", loss_value=torch.tensor(1.0))
    shown = Training("student", Terminal(verbosity=-1))
    shown.rkd_run_start(run)
    for run.state.batch in range(500):
        now += 0.01
        shown.rkd_after_update(run)
    assert 5 <= run.looked <= 5 / progress.READ_EVERY
    assert shown.values == {"loss": 1.0, "loss.adv": 1.0, "loss.clean": 0.0, "weight.adv": pytest.approx(0.7),
                            "T.robust": 2.0}  # fmt: skip
    assert shown._left() == "5 s left"


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Training("student", Terminal())
    run = FakeRun(state=TrainState(), epochs=20, loader=[None])
    shown.rkd_run_start(run)
    for run.state.epoch in range(1, 21):
        now += 1.0
        shown.rkd_epoch_end(run, {"epoch": run.state.epoch - 1, "loss": 0.5, "val.clean": 0.9, "val.robust": 0.4})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"student: epoch {n}/20" for n in (5, 10, 15, 20)]
    checked = "validation after epoch 5: clean 90.0 %, robust 40.0 %"
    assert lines[0] == f"student: epoch 5/20, loss 0.500, {checked}, 15 s left"


def test_an_evaluation_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    tell = Display(Terminal()).evaluating("student")
    for done in range(0, 1000, 10):
        now += 0.125  # exact in binary
        tell("pgd-sat", done, 1000)
    assert capsys.readouterr().err == (
        "evaluating student: PGD-SAT 390/1000, 8 s left\nevaluating student: PGD-SAT 790/1000, 3 s left\n"
    )

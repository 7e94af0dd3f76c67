"""Losses and weights that are not finite: found within a step, told with all that helps, undone where asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import Stopped, TrainingFailed
from rkd.core.hooks import hookimpl
from rkd.core.run import Run
from rkd.core.step import Step
from rkd.core.trainer import fit
from rkd.core.types import Batch
from rkd.distributed.ranks import Ranks
from rkd.plugins.extensions.ema import Ema
from rkd.plugins.schedulers.anl import AdaptiveNormalization
from rkd.storage.runfolder import RunFolder
from rkd.testing import tiny_batch, tiny_run
from rkd.training.checkpoints import Checkpointer
from rkd.training.divergence import MAX_ROLLBACKS, DivergenceMonitor, OnNan, copied


@dataclass
class Breaks:
    """Cross-entropy twice, which `breaks(step)` may spoil: the loss, or the gradient alone."""

    breaks: Any
    how: str = "loss"
    roles: ClassVar = ()
    defaults: ClassVar = {}
    weights: ClassVar = {}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        z = step.student("clean")
        a = ops.cross_entropy(z, step.y)
        if self.breaks(step):
            # sqrt has an infinite slope at 0, and 0 times infinity is no number.
            a = a * math.nan if self.how == "loss" else a + (z * 0).sum(1).sqrt()
        return {"a": a, "b": 2 * a}


@dataclass
class Listener:
    said: list[str] = field(default_factory=list)
    at: int = 0
    asked: int = 0

    @hookimpl
    def rkd_notice(self, run, text):
        self.said.append(text)

    @hookimpl
    def rkd_stop(self, run):
        self.asked += 1
        return self.asked == self.at or None


def make(
    breaks: Any, how: str = "loss", on_nan: OnNan = "stop", folder: RunFolder | None = None, **settings: Any
) -> tuple[Run, Listener]:
    """Three epochs of four steps."""
    listener = Listener(at=settings.pop("at", 0))
    run = tiny_run(
        Breaks(breaks, how), epochs=3, batch_size=4, lr=0.05, schedulers={"anl": AdaptiveNormalization(0.5)},
        extensions={"ema": Ema(0.5), "it": listener}, checkpoints=Checkpointer(folder),
        monitor=DivergenceMonitor(on_nan), **settings,
    )  # fmt: skip
    return run, listener


def at(*progress: float) -> Any:
    """Breaks in these steps of twelve."""
    return lambda step: any(abs(step.progress - p / 12) < 1e-9 for p in progress)


def weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.student.net.parameters()])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("loss", r"the loss became nan in epoch 2, batch 3 \(a = nan, b = nan; images "),
        (
            "gradient",
            r"a weight is no longer finite after epoch 2, batch 3, though the loss was: arch\.\S+ and \d+ more",
        ),
    ],
)
def test_it_stops_within_the_step_and_says_where(how: str, words: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    seen = []

    def breaks(step: Step) -> bool:
        seen.append((round(12 * step.progress), step.batch.index.tolist()))
        return at(6)(step)

    run, _ = make(breaks, how, folder=folder)
    with pytest.raises(TrainingFailed, match=words) as error:
        fit(run)
    said = str(error.value)
    assert seen[-1][0] == 6, "not a step further"
    assert f"images {', '.join(map(str, seen[-1][1]))} of the training part" in said
    assert f"the last good state is {folder.last}" in said and "--lr" in said
    state, _ = folder.load()
    assert state is not None and state["epoch"] == 1
    assert all(bool(t.isfinite().all()) for t in state["student"].values() if t.is_floating_point())


def test_on_a_device_that_is_not_waited_for_it_is_the_next_step(tmp_path: Path) -> None:
    """The answer is fetched a step later; a checkpoint waits for it. Another device's name stands for a GPU here."""
    seen = []

    def breaks(step: Step) -> bool:
        seen.append(round(12 * step.progress))
        return at(5)(step)

    run, _ = make(breaks)
    watch = DivergenceMonitor()
    batches = list(run.loader.batches(0))

    class Elsewhere:
        type = "cuda"

    run.device = Elsewhere()  # type: ignore[assignment]
    run.loss_value = torch.tensor(1.0)
    assert watch.after(run, batches[0])
    run.loss_value = torch.tensor(math.inf)
    run.state.batch = 1
    assert watch.after(run, batches[1]), "not known yet"
    run.loss_value = torch.tensor(1.0)
    run.state.batch = 2
    with pytest.raises(TrainingFailed, match="the loss became inf in epoch 1, batch 2 "):
        watch.after(run, batches[2])
    run.loss_value = torch.tensor(math.nan)
    watch = DivergenceMonitor()
    assert watch.after(run, batches[2])
    with pytest.raises(TrainingFailed, match="the loss became nan in epoch 1, batch 3 "):
        watch.settle(run)


def test_a_large_finite_weight_is_no_alarm() -> None:
    """The sum of their squares would be infinite."""
    run, _ = make(at(), lr_schedule=0.0)
    with torch.no_grad():
        run.student.net.arch.conv.bias.fill_(1e30)
    run.student.net.arch.norm.track_running_stats = False
    watch = DivergenceMonitor()
    run.loss_value = torch.tensor(1.0)
    assert watch.after(run, next(run.loader.batches(0)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_skip_is_as_if_the_batch_had_not_been(how: str) -> None:
    """Weights, momentum, running statistics, schedulers, averages and means: all as without that batch."""
    run, listener = make(at(5, 6), how, on_nan="skip")
    fit(run)
    other, _ = make(at(), how)
    batches = other.loader.batches

    def without(epoch: int, start: int = 0) -> Iterator[Batch]:
        """The numbers of the batches go on as before: schedules and dropout see the same progress."""
        for number, batch in enumerate(batches(epoch)):
            if epoch != 1 or number in (0, 3):
                other.state.batch = number
                yield batch

    other.loader.batches = without  # type: ignore[method-assign]
    fit(other)
    states = []
    for each in (run, other):
        state = copied(each.state_dict())
        states.append({k: state[k] for k in ("student", "optimizer", "schedulers", "extensions", "knobs")})
    assert str(states[0]) == str(states[1])
    assert run.state.history[1].pop("skipped") == 2
    for line, expected in zip(run.state.history, other.state.history, strict=True):
        line.pop("seconds"), expected.pop("seconds")
        assert line == pytest.approx(expected)
    assert [f"epoch 2, batch {n}" in text for n, text in zip((2, 3), listener.said, strict=True)] == [True, True]
    assert all("skipped" in text for text in listener.said)


def test_skipping_has_an_end() -> None:
    run, _ = make(lambda step: step.progress >= 0.3, on_nan="skip")
    with pytest.raises(TrainingFailed, match="every batch of epoch 2 was skipped"):
        fit(run)
    run = tiny_run(Breaks(lambda step: True), batch_size=1, monitor=DivergenceMonitor("skip"))
    with pytest.raises(TrainingFailed, match="10 batches of this epoch were skipped before"):
        fit(run)


def test_rollback_goes_back_to_the_start_of_the_epoch_with_half_the_rate() -> None:
    rates = []

    def breaks(step: Step) -> bool:
        rates.append((round(12 * step.progress), step.lr_scale))
        return abs(step.progress - 6 / 12) < 1e-9 and step.lr_scale > 0.3

    run, listener = make(breaks, on_nan="rollback")
    fit(run)
    assert rates == [(n, 1.0) for n in range(7)] + [(n, 0.5) for n in (4, 5, 6)] + [(n, 0.25) for n in range(4, 12)]
    assert [line["epoch"] for line in run.state.history] == [0, 1, 2]
    assert [line["lr"] for line in run.state.history] == pytest.approx([0.05, 0.0125, 0.0125])
    assert len(listener.said) == 2 and "back to the start of the epoch" in listener.said[0]
    # As a run that has had that rate from there on.
    other, _ = make(at())
    other.lr_schedule = lambda progress: 1.0 if progress < 4 / 12 - 1e-9 else 0.25
    fit(other)
    assert torch.equal(weights(run), weights(other))
    assert str(run.state_dict()["extensions"]) == str(other.state_dict()["extensions"])


def test_rolling_back_has_an_end() -> None:
    run, listener = make(at(5), on_nan="rollback")
    with pytest.raises(TrainingFailed, match=f"after {MAX_ROLLBACKS} rollbacks"):
        fit(run)
    assert len(listener.said) == MAX_ROLLBACKS


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["skip", "rollback"])
def test_it_goes_on_exactly_all_the_same(on_nan: OnNan, tmp_path: Path) -> None:
    def breaks(step: Step) -> bool:
        return (at(5)(step) or at(6)(step)) and step.lr_scale > 0.3

    whole, counter = make(breaks, on_nan=on_nan, folder=RunFolder.create(tmp_path / "whole"))
    fit(whole)
    for stop_at in range(1, counter.asked + 1):
        folder = RunFolder.create(tmp_path / f"{stop_at}")
        with pytest.raises(Stopped):
            fit(make(breaks, on_nan=on_nan, folder=folder, at=stop_at)[0])
        rest, _ = make(breaks, on_nan=on_nan, folder=folder)
        rest.load_state_dict(folder.load()[0] or {})
        fit(rest)
        assert torch.equal(weights(rest), weights(whole)), stop_at
        drop = {"seconds"}
        assert [{k: v for k, v in line.items() if k not in drop} for line in rest.state.history] == [
            {k: v for k, v in line.items() if k not in drop} for line in whole.state.history
        ]


def test_values_that_differ_between_processes() -> None:
    """Class weights of an extension that each process computes of its own samples went on without an error."""

    class Apart(Ranks):
        def objects(self, mine: Any) -> list[Any]:
            return [mine, {"class_weights": torch.tensor([2.0, 1.0])}]

    run, _ = make(at(), "loss")
    monitor = DivergenceMonitor(ranks=Apart(0, 2))
    run.state.knobs["class_weights"] = torch.tensor([2.0, 1.0])
    monitor.after(run, tiny_batch())
    run.state.knobs["class_weights"] = torch.tensor([1.0, 2.0])
    with pytest.raises(TrainingFailed, match="different values of class_weights"):
        monitor.after(run, tiny_batch())

"""SWA against plain loops, and a training with it stopped anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.core.errors import Stopped
from rkd.core.random import key
from rkd.core.run import Run
from rkd.core.step import AttackPlan
from rkd.core.trainer import fit, train_step
from rkd.nets.batchnorm import batch_norms
from rkd.plugins.extensions.swa import Swa
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.storage.runfolder import RunFolder
from rkd.testing import OneStep, tiny_run
from rkd.testing.tiny import cross_entropy
from rkd.training.checkpoints import Checkpointer
from rkd.training.validation import Validation, chosen_net

from ..core.losses import Adversarial, Clean
from ..training.test_checkpoints import StopAt, ending


def epochs(run: Run, count: int) -> list[dict[str, torch.Tensor]]:
    """Train without validation; the weights after each epoch."""
    run.hooks.hook.rkd_run_start(run=run)
    after = []
    for epoch in range(count):
        for number, batch in enumerate(run.loader.batches(epoch)):
            run.state.epoch, run.state.batch = epoch, number
            train_step(run, batch)
            run.hooks.hook.rkd_after_update(run=run)
        after.append({name: p.detach().clone() for name, p in run.student.net.named_parameters()})
    return after


@pytest.mark.parametrize(("since", "first"), [(0.0, 0), (0.5, 2), (0.3, 2), (0.75, 3)])
def test_the_mean_of_the_weights_after_each_epoch(since: float, first: int) -> None:
    """An epoch counts if `since` has come when it begins."""
    run = tiny_run(Clean(), extensions={"swa": Swa(since)}, epochs=4)
    after = epochs(run, 4)[first:]
    for name, mean in run.eval_net().named_parameters():
        torch.testing.assert_close(mean, torch.stack([weights[name] for weights in after]).mean(0))


def test_the_student_itself_before_the_first_mean() -> None:
    run = tiny_run(Clean(), extensions={"swa": Swa(0.5)}, epochs=4)
    assert run.eval_net() is run.student.net
    epochs(run, 1)
    assert run.eval_net() is run.student.net


def statistics_by_hand(run: Run, net: nn.Module, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance before the only batch norm: of each whole batch, and then their means."""
    order = torch.randperm(len(run.loader.split), generator=torch.Generator().manual_seed(key(run.seed, "swa", epoch)))
    size = run.loader.batch_size
    means, variances = [], []
    for number in range(len(order) // size):
        x = run.loader.batch(order[number * size : (number + 1) * size], epoch).x
        values = net.arch.conv((x - net.mean) / net.std).double().transpose(0, 1).flatten(1)
        means.append(values.mean(1))
        variances.append(values.var(1, unbiased=True))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


@pytest.mark.parametrize("batch_size", [8, 6])
def test_running_statistics_are_those_of_the_training_images(batch_size: int) -> None:
    """With 16 images and batches of 6 the last four take no part."""
    run = tiny_run(Clean(), extensions={"swa": Swa(0.0)}, epochs=2, batch_size=batch_size)
    epochs(run, 2)
    with torch.no_grad():
        net = run.eval_net()
        mean, variance = statistics_by_hand(run, net, 1)
    torch.testing.assert_close(net.arch.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.arch.norm.running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert net.arch.norm.momentum == run.student.net.arch.norm.momentum


def test_statistics_are_computed_once_for_each_mean() -> None:
    run = tiny_run(Clean(), extensions={"swa": Swa(0.0)}, epochs=3)
    asked = []
    batch = run.loader.batch
    run.loader.batch = lambda index, epoch: asked.append(epoch) or batch(index, epoch)
    epochs(run, 1)
    assert run.eval_net() is run.eval_net()
    assert asked == [0, 0]


def test_evaluating_leaves_the_training_alone() -> None:
    """Neither the student nor the global random numbers notice, with dropout too."""

    def end(validate: bool) -> str:
        run = tiny_run(Clean(), extensions={"swa": Swa(0.0)}, epochs=2, validate=lambda run: run.eval_net() and {})
        run.student.net.arch.head = nn.Sequential(nn.Dropout(0.3), run.student.net.arch.head)
        run.validate = run.validate if validate else None
        before = torch.get_rng_state()
        fit(run)
        assert torch.equal(torch.get_rng_state(), before)
        return str(run.student.net.state_dict())

    assert end(True) == end(False)


def test_auxiliary_norms_are_not_asked() -> None:
    """What is deployed has statistics of clean images."""
    run = tiny_run(
        Adversarial(), attack=OneStep(), extensions={"swa": Swa(0.0)}, conversion=AuxiliaryBatchNorm(), epochs=1
    )
    epochs(run, 1)
    with torch.no_grad():
        net = run.eval_net()
        mean, _ = statistics_by_hand(run, net, 0)
    torch.testing.assert_close(net.arch.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    assert len(batch_norms(net)) == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 1


def test_a_rollback_takes_the_average_back() -> None:
    run = tiny_run(Clean(), extensions={"swa": (swa := Swa(0.0))}, epochs=3)
    epochs(run, 1)
    kept = run.eval_net().state_dict()
    kept = {name: value.clone() for name, value in kept.items()}
    state = {name: value for name, value in swa.state_dict().items() if name != "average"} | {"average": kept}
    epochs(run, 2)
    swa.load_state_dict(state)
    assert all(torch.equal(value, kept[name]) for name, value in run.eval_net().state_dict().items())


def resumable(folder: RunFolder | None, stop: StopAt) -> Run:
    run = tiny_run(
        Clean(), epochs=3, batch_size=6, checkpoints=Checkpointer(folder), extensions={"swa": Swa(0.3), "stop": stop}
    )
    run.validate = Validation(run.data.test, AttackPlan(OneStep(), cross_entropy), every=2, select="robust")
    return run


@pytest.mark.slow
def test_a_training_stopped_anywhere_goes_on_exactly(tmp_path) -> None:
    """After each step and in each validation; the mean of the second epoch is first asked for in the third."""
    whole = resumable(RunFolder.create(tmp_path / "whole"), counter := StopAt(0))
    fit(whole)
    for at in range(1, counter.asked + 1):
        folder = RunFolder.create(tmp_path / f"stopped-{at}")
        with pytest.raises(Stopped):
            fit(resumable(folder, StopAt(at)))
        rest = resumable(folder, StopAt(0))
        rest.load_state_dict(folder.load()[0])
        folder.rewrite_history(rest.state.history)
        fit(rest)
        assert ending(rest) == ending(whole), at
        assert str(chosen_net(rest).state_dict()) == str(chosen_net(whole).state_dict())


@pytest.mark.parametrize("since", [-0.1, 1.0])
def test_it_begins_within_the_training(since: float) -> None:
    with pytest.raises(ValueError, match=r"since is a share of the training in \[0, 1\)"):
        Swa(since)

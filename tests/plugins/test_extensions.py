"""EMA and AWP against plain loops, and both beside every part they meet."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rkd.core.hooks import run_hooks
from rkd.core.run import Run
from rkd.core.trainer import train_step
from rkd.data.dataset import ArraySplit, Dataset
from rkd.data.loader import Loader
from rkd.nets.student import NetStudent
from rkd.plugins.extensions.awp import Awp
from rkd.plugins.extensions.ema import Ema
from rkd.plugins.methods.ce import CrossEntropy


def a_run(extension, lr=0.1):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    split = ArraySplit(torch.rand(24, 1, 8, 8), torch.arange(24) % 3)
    data = Dataset("tiny", split, split, (1, 8, 8), ("a", "b", "c"), (0.0,), (1.0,))
    run = Run(
        student=NetStudent(net), loss=CrossEntropy(), loader=Loader(split, 8, 0), data=data, lr=lr, epochs=2,
        optimizer=torch.optim.SGD(net.parameters(), lr=lr), hooks=run_hooks({"it": extension}),
    )  # fmt: skip
    run.hooks.hook.rkd_run_start(run=run)
    return run


def test_ema_is_the_recurrence():
    run = a_run(Ema(decay=0.9))
    expected = [p.detach().clone() for p in run.student.net.parameters()]
    for batch in run.loader.batches(0):
        train_step(run, batch)
        run.hooks.hook.rkd_after_update(run=run)
        expected = [0.9 * m + 0.1 * p.detach() for m, p in zip(expected, run.student.net.parameters(), strict=True)]
    net = run.eval_net()
    for mean, wanted in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, wanted)
    assert torch.equal(net[1].running_mean, run.student.net[1].running_mean)


def test_ema_resumes():
    first = a_run(Ema(decay=0.9))
    batches = list(first.loader.batches(0))
    for batch in batches[:2]:
        train_step(first, batch)
        first.hooks.hook.rkd_after_update(run=first)
    second = a_run(Ema(decay=0.9))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.hooks.hook.rkd_run_start(run=second)
    for run in (first, second):
        train_step(run, batches[2])
        run.hooks.hook.rkd_after_update(run=run)
    for a, b in zip(first.eval_net().parameters(), second.eval_net().parameters(), strict=True):
        assert torch.equal(a, b)


def test_awp_is_the_gradient_at_the_worst_weights_nearby():
    run = a_run(Awp(gamma=0.05), lr=0.1)
    batch = next(run.loader.batches(0))
    plain = copy.deepcopy(run.student.net).train()
    before = [p.detach().clone() for p in plain.parameters()]
    nn.functional.cross_entropy(plain(batch.x), batch.y).backward()
    with torch.no_grad():
        for p in plain.parameters():
            if p.ndim > 1:
                p += 0.05 * p.norm() * p.grad / p.grad.norm()
    plain.zero_grad()
    plain[1].reset_running_stats()
    nn.functional.cross_entropy(plain(batch.x), batch.y).backward()
    train_step(run, batch)
    for moved, start, worst in zip(run.student.net.parameters(), before, plain.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), start - 0.1 * worst.grad)
    torch.testing.assert_close(run.student.net[1].running_mean, plain[1].running_mean)
    assert int(run.student.net[1].num_batches_tracked) == 1


def test_awp_of_radius_zero_is_plain_training():
    with_awp, without = a_run(Awp(gamma=0.0)), a_run(object())
    for run in (with_awp, without):
        for batch in run.loader.batches(0):
            train_step(run, batch)
    for a, b in zip(with_awp.student.net.parameters(), without.student.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)

"""Run-time hooks: when they are called, and what is said about a misspelt one."""

from __future__ import annotations

import pytest
import torch

from rkd.core.errors import RkdError
from rkd.core.hooks import hookimpl, run_hooks
from rkd.core.trainer import fit, train_step
from rkd.testing import OneStep, tiny_batch, tiny_run

from .losses import Adversarial, Clean, weights


def test_hooks_are_called_in_order() -> None:
    calls = []

    class Listener:
        @hookimpl
        def rkd_run_start(self, run):
            calls.append("start")

        @hookimpl
        def rkd_attack_query(self, step, view, rows, query, logits):
            assert len(rows) == len(logits) == len(step.batch) and query == 0
            calls.append(f"query {view}")

        @hookimpl
        def rkd_after_update(self, run):
            calls.append("update")

        @hookimpl
        def rkd_epoch_end(self, run, metrics):
            calls.append(f"epoch {metrics['epoch']}")

    fit(tiny_run(Adversarial(), attack=OneStep(), extensions={"it": Listener()}))
    assert calls == ["start", "query adv", "update", "query adv", "update", "epoch 0"]


def test_an_extension_may_take_over_the_backward() -> None:
    class Half:
        @hookimpl
        def rkd_backward(self, step):
            loss = run.total_loss(step) / 2
            loss.backward()
            run.loss_value = loss.detach()
            return True

    run = tiny_run(Clean(), extensions={"half": Half()}, lr=0.1)
    plain = tiny_run(Clean(), lr=0.05)
    train_step(run, tiny_batch())
    train_step(plain, tiny_batch())
    assert torch.allclose(weights(run), weights(plain), atol=1e-6)


def test_a_hook_that_does_not_exist() -> None:
    class Misspelt:
        @hookimpl
        def rkd_epoch_ends(self, run): ...

    class WrongArgument:
        @hookimpl
        def rkd_epoch_end(self, runs): ...

    for extension in (Misspelt(), WrongArgument()):
        with pytest.raises(RkdError, match="extension it"):
            run_hooks({"it": extension})

"""Run-time hooks: when they are called, and what is said about a misspelt one."""

from __future__ import annotations

import pytest
import torch

from rkd.core.errors import RkdError
from rkd.core.hooks import hookimpl, run_hooks
from rkd.core.trainer import fit, train_step
from rkd.plugins.extensions.awp import Awp
from rkd.plugins.extensions.ema import Ema
from rkd.plugins.extensions.swa import Swa
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


def test_the_end_of_an_attack_is_told_and_gradients_may_be_changed() -> None:
    told = []

    class Halves:
        @hookimpl
        def rkd_attack_end(self, step, view, images):
            told.append((view, images.shape, images.requires_grad))

        @hookimpl
        def rkd_gradient(self, run, step):
            for weight in run.student.net.parameters():
                if weight.grad is not None:
                    weight.grad.mul_(0.5)

    halved = tiny_run(Adversarial(), attack=OneStep(), extensions={"it": Halves()}, lr=0.1)
    plain = tiny_run(Adversarial(), attack=OneStep(), lr=0.05)
    for run in (halved, plain):
        train_step(run, next(run.loader.batches(0)))
    assert told == [("adv", halved.loader.batch(torch.arange(8), 0).x.shape, False)]
    torch.testing.assert_close(weights(halved), weights(plain))


def test_gradients_of_a_perturbed_step_may_be_changed_too() -> None:
    class Clears:
        @hookimpl
        def rkd_gradient(self, run, step):
            run.optimizer.zero_grad()

    run = tiny_run(Adversarial(), attack=OneStep(), extensions={"awp": Awp(), "it": Clears()})
    before = weights(run)
    run.hooks.hook.rkd_run_start(run=run)
    train_step(run, next(run.loader.batches(0)))
    assert torch.equal(weights(run), before)


@pytest.mark.parametrize(
    ("two", "words"),
    [
        ({"one": Awp(0.01), "two": Awp(0.02)}, "one and two both compute the gradients .*take one out"),
        ({"ema": Ema(), "swa": Swa()}, "ema and swa both give the net to evaluate and keep, .*take one out"),
    ],
)
def test_what_one_extension_alone_can_do(two: dict, words: str) -> None:
    with pytest.raises(RkdError, match=words):
        run_hooks(two)

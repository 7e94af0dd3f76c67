"""Which weights are kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from rkd.core.hooks import hookimpl, run_hooks
from rkd.core.run import Run
from rkd.core.step import AttackPlan
from rkd.core.trainer import fit
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.testing import OneStep, tiny_run
from rkd.testing.tiny import cross_entropy
from rkd.training.validation import Validation, chosen_net

from ..core.losses import Adversarial, Clean, weights


@dataclass
class Averaged:
    """Stands in for EMA: the net to evaluate is another one."""

    net: torch.nn.Module

    @hookimpl
    def rkd_eval_net(self, run):
        return self.net


def validation(run: Run, select: str = "w-robust", every: int = 1) -> Validation:
    return Validation(run.data.test, AttackPlan(OneStep(), cross_entropy), every, None, select)


def test_the_best_epoch_is_kept() -> None:
    run = tiny_run(Clean(), epochs=4, lr=0.3)
    run.validate = validation(run, "clean")
    seen = []

    class Look:
        @hookimpl
        def rkd_epoch_end(self, run, metrics):
            seen.append((metrics["val.clean"], weights(run)))

    run.hooks = run_hooks({"look": Look()})
    fit(run)
    scores = [score for score, _ in seen]
    best = max(place for place, score in enumerate(scores) if score == max(scores))
    assert run.state.best == {"epoch": best, "score": scores[best]}, "later epochs win ties"
    kept = torch.cat([p.flatten() for p in chosen_net(run).parameters()])
    assert torch.equal(kept, seen[best][1])
    assert not any(p.requires_grad for p in chosen_net(run).parameters())
    assert torch.equal(weights(run), seen[-1][1]), "the student itself is left at the last epoch"


def test_the_last_epoch_can_be_asked_for() -> None:
    run = tiny_run(Clean(), epochs=2)
    run.validate = validation(run, "last")
    fit(run)
    assert run.state.best is None
    assert torch.equal(torch.cat([p.flatten() for p in chosen_net(run).parameters()]), weights(run))


@pytest.mark.parametrize("select", ["w-robust", "robust", "clean"])
def test_what_chooses(select: str) -> None:
    run = tiny_run(Clean(), epochs=1)
    run.validate = validation(run, select)
    fit(run)
    line = run.state.history[0]
    robust, clean = line["val.robust"], line["val.clean"]
    assert run.state.best["score"] == {"w-robust": (clean + robust) / 2, "robust": robust, "clean": clean}[select]


def test_validation_every_few_epochs_and_at_the_end() -> None:
    run = tiny_run(Clean(), epochs=5)
    run.validate = validation(run, every=2)
    fit(run)
    assert [("val.clean" in line) for line in run.state.history] == [False, True, False, True, True]


def test_an_extension_gives_the_net_to_keep() -> None:
    other = copy.deepcopy(tiny_run(Clean()).student.net)
    with torch.no_grad():
        other.arch.head.bias.add_(1)
    run = tiny_run(Clean(), extensions={"average": Averaged(other)})
    fit(run)
    assert torch.equal(chosen_net(run).arch.head.bias, other.arch.head.bias)


def test_auxiliary_norms_are_not_kept() -> None:
    run = tiny_run(Adversarial(), attack=OneStep(), conversion=AuxiliaryBatchNorm())
    run.validate = validation(run)
    fit(run)
    assert not any(".aux." in name for name in chosen_net(run).state_dict())

"""What the tests of several processes run, in one process and in many.

torchrun ... -m tests.distributed.distributed_cases FOLDER
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rkd.core.errors import Stopped
from rkd.core.hooks import hookimpl
from rkd.core.run import Run
from rkd.core.step import AttackPlan
from rkd.core.trainer import fit, train_step
from rkd.data.loader import Loader
from rkd.distributed.ranks import ALONE, Ranks, join, leave
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.journal import Journal
from rkd.evaluation.samples import EvalSettings
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.joint import PgdJoint
from rkd.plugins.augments.mixup import Mixup
from rkd.plugins.extensions.awp import Awp
from rkd.plugins.extensions.ema import Ema
from rkd.plugins.extensions.swa import Swa
from rkd.plugins.methods.ce import CrossEntropy
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.registry.defaults import default_schedulers
from rkd.storage.serialize import save_state
from rkd.testing import LinearNet, OneStep, TinyNet, tiny_dataset, tiny_net, tiny_run
from rkd.testing.tiny import cross_entropy
from rkd.training.accumulation import Accumulation
from rkd.training.checkpoints import Checkpointer
from rkd.training.divergence import DivergenceMonitor, copied
from rkd.training.validation import Validation
from tests.training.test_accumulation import CATALOG, Balanced, TwoTerms

METHODS = CATALOG.names("loss")
DATA = tiny_dataset(51)
"""34 images to train on: batches of 16, 16 and 2. Four processes share the first two and do the last one each."""


def a_run(ranks: Ranks, loss: Any, net: Any = LinearNet, mode: str = "eval", **settings: Any) -> Run:
    augments = settings.pop("augments", ())
    student = NetStudent(tiny_net(net))
    if settings.pop("aux_bn", False):
        student = AuxiliaryBatchNorm(joint=True)(student)
    wanted = getattr(loss, "defaults", {}).get("attack")
    attack = PgdJoint(steps=2) if wanted == "pgd-joint" else OneStep()
    attack.mode = mode
    return tiny_run(
        loss, attack=attack if wanted else None, data=DATA, student=student,
        loader=Loader(DATA.train, 16, 0, augments, ranks=ranks), ranks=ranks,
        backward=Accumulation(settings.pop("micro_batches", 1), ranks, settings.pop("sync_bn", False)),
        monitor=DivergenceMonitor(ranks=ranks), checkpoints=Checkpointer(ranks=ranks),
        optimizer=torch.optim.SGD(student.net.parameters(), 0.05, momentum=0.9), **settings,
    )  # fmt: skip


def of_method(name: str) -> dict[str, Any]:
    loss = CATALOG.create("loss", name)
    return {"loss": loss, "schedulers": {name: CATALOG.create("scheduler", name) for name in default_schedulers(loss)}}


def end(run: Run) -> dict[str, Any]:
    """Train, and tell how it ended."""
    fit(run)
    state = {f"{net}.{name}": v.clone() for net, one in run.nets.items() for name, v in one.state_dict().items()}
    kept = {name: value.clone() for name, value in run.eval_net().state_dict().items()}
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in run.state.history]
    return {"state": state, "kept": kept, "history": history, "knobs": dict(run.state.knobs)}


def trainings(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {f"linear {m}": end(a_run(ranks, **of_method(m))) for m in METHODS}
    for m in METHODS:  # one step of a net with batch norm, searches in train mode
        run = a_run(ranks, **of_method(m), net=TinyNet, mode="train", sync_bn=True)
        batch = next(run.loader.batches(0))
        loss = train_step(run, batch)
        states = {net: dict(one.state_dict()) for net, one in run.nets.items()}
        found[f"sync {m}"] = {"state": states, "loss": loss, "terms": run.terms}
    for parts in (1, 2):
        seen = Balanced()
        run = a_run(ranks, TwoTerms(), schedulers={"s": seen}, micro_batches=parts)
        found[f"schedulers, {parts} parts"] = end(run) | {"seen": seen.seen}
    awp = {"awp": Awp(0.05), "ema": Ema(0.5)}
    found["awp and ema"] = end(a_run(ranks, TwoTerms(), extensions=awp, micro_batches=2, schedulers={"s": Balanced()}))
    swa = {"swa": Swa(since=0.0)}
    found["swa"] = end(a_run(ranks, TwoTerms(), net=TinyNet, sync_bn=True, extensions=swa))
    found["mixup"] = end(a_run(ranks, CrossEntropy(), augments=[Mixup(classes=4)]))
    found["clipped"] = end(a_run(ranks, CrossEntropy(), clip_gradient=0.01))
    auxiliary = a_run(ranks, TwoTerms(), net=TinyNet, aux_bn=True, sync_bn=True)
    train_step(auxiliary, next(auxiliary.loader.batches(0)))
    found["auxiliary norms"] = {"state": dict(auxiliary.student.net.state_dict())}
    check = Validation(DATA.test, AttackPlan(OneStep(), cross_entropy), ranks=ranks)
    found["validation"] = end(a_run(ranks, CrossEntropy(), validate=check, epochs=3))
    # Each process's own statistics: not one process's training, but one net for all (fit checks that).
    found["local"] = end(a_run(ranks, TwoTerms(), net=TinyNet, mode="train", schedulers={"s": Balanced()}))
    return found


class StopsInTheSecondEpoch:
    """Asks one process to stop; all have to."""

    @hookimpl
    def rkd_stop(self, run: Run) -> bool:
        return (run.state.epoch, run.state.batch) == (1, 2) and run.ranks.rank == run.backward.ranks.size - 1


def to_be_continued(ranks: Ranks, **settings: Any) -> Run:
    return a_run(ranks, TwoTerms(), schedulers={"s": CATALOG.create("scheduler", "anl")}, epochs=3, **settings)


def interrupted(ranks: Ranks) -> dict[str, Any]:
    """The state of a run that was stopped within an epoch."""
    run = to_be_continued(ranks, extensions={"stop": StopsInTheSecondEpoch()})
    with suppress(Stopped):
        fit(run)
    return copied(run.state_dict())


def evaluations(ranks: Ranks, folder: Path) -> dict[str, Any]:
    net = tiny_net()
    attacks = {"one": AttackPlan(OneStep(), cross_entropy), "none": AttackPlan(lambda x, target: x, cross_entropy)}
    shared: dict[str, Any] = {"threat": DATA.threat, "examples": 3, "batch_size": 5, "ranks": ranks, "rounded": True}
    found = evaluate(net, DATA.test, attacks, EvalSettings(classes=4, journal=Journal(folder / "journal"), **shared))
    again = evaluate(net, DATA.test, attacks, EvalSettings(classes=4, journal=Journal(folder / "journal"), **shared))
    few = evaluate(net, DATA.test, attacks, EvalSettings(limit=1, **shared))
    return {"found": plain(found), "again": plain(again), "few": plain(few)}


def plain(result: Any) -> dict[str, Any]:
    outcomes = {
        name: {"right": o.right, "prediction": o.prediction, "rounded": o.rounded, "count": (o.forwards, o.backwards)}
        for name, o in result.outcomes.items()
    }
    gallery = result.gallery and [result.gallery.rows, result.gallery.clean, result.gallery.adversarial]
    return {"index": result.index, "outcomes": outcomes, "gallery": gallery, "seconds": None}


def everything(ranks: Ranks, folder: Path) -> dict[str, Any]:
    found = trainings(ranks) | {"uninterrupted": end(to_be_continued(ranks))}
    return found | {"interrupted": interrupted(ranks)["student"], "evaluations": evaluations(ranks, folder)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    these = join()
    assert these is not ALONE
    folder = Path(sys.argv[1])
    torch.save(everything(these, folder), folder / f"{these.rank}.pt")
    if (state := interrupted(these)) and these.first:
        save_state(folder / "state.safetensors", state)
    leave(these)
    # As rkd.cli does: torch's threads may abort a process of several that ends by itself.
    sys.stdout.flush()
    os._exit(0)

"""The baseline: the run's own student, trained the same way without teachers. What a method brings shows beside it.

It is an ordinary run in the cache (`prepared.py`), so that runs of several methods with one seed share it. It has the
run's data, student, threat, optimizer, epochs and so on; what belongs to the run's method (attack, objective,
schedulers, the extensions and conversions that it brings) it has of its own loss. `baseline.train` adds settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rkd.core.errors import ConfigError
from rkd.core.traits import LossTraits, declared
from rkd.distributed.ranks import ALONE, Ranks
from rkd.evaluation.result import Evaluation, difference, unpacked
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import PYTHON, Catalog
from rkd.registry.config import parse
from rkd.registry.losses import names
from rkd.registry.recipes import Table, merge, nested, read_recipe
from rkd.storage.runfolder import RunFolder

from ..nets import from_sources
from ..plan import Plan, Reporter
from ..resolve import resolve
from .prepared import TrainRun, is_prepared, place_of_prepared, prepare_into

SHARED = (
    "seed", "epochs", "batch_size", "grad_accumulation", "sync_bn", "device", "precision", "engine", "on_nan", "data",
    "student", "threat", "augments", "extensions", "optimizer", "validate", "evaluate", "checkpoint",
)  # fmt: skip
"""Settings that the baseline has of the run."""


@dataclass(frozen=True)
class Baseline:
    """A baseline of a run: its loss, its whole configuration, its folder in the cache."""

    loss: str
    table: Table
    folder: Path

    @property
    def ready(self) -> bool:
        return is_prepared(self.folder)


def baseline_of(plan: Plan, catalog: Catalog) -> Baseline | None:
    """The baseline that a run asks for. Raises ConfigError, with the problems of its configuration."""
    wanted = plan.config.baseline
    if not wanted:
        return None
    if catalog.find("model", plan.config.student.model).plugin.distribution == PYTHON:
        raise ConfigError(
            "baseline: it is kept under its student's name, which says nothing of a net that Python code gave; train "
            'it by a run of its own (rkd.train(loss="pgd-at", ...)) and compare the two (rkd compare)'
        )
    table = _table(plan, wanted.loss, wanted.train)
    try:
        own = resolve(table, catalog)
    except ConfigError as error:
        raise ConfigError([f"baseline: {problem}" for problem in error.problems]) from None
    if own.teachers:
        roles = ", ".join(teacher.role for teacher in own.teachers)
        raise ConfigError(
            f"baseline: the loss {wanted.loss!r} needs teachers ({roles}), and a baseline has none; usual are pgd-at, "
            "trades, ce"
        )
    student = plan.config.student.model
    return Baseline(wanted.loss, table, place_of_prepared(table, "baselines", (wanted.loss, student), plan.data))


def _table(plan: Plan, loss: str, more: Mapping[str, Any]) -> Table:
    dumped = plan.config.model_dump(by_alias=True, exclude_none=True)
    table = {key: dumped[key] for key in SHARED}
    table["validate"] = {key: value for key, value in table["validate"].items() if key != "select"}
    brought = dict(declared(plan.loss, LossTraits).defaults)
    extensions = set(names(brought.get("extension", ())))
    table["extensions"] = {key: value for key, value in table["extensions"].items() if key not in extensions}
    students = nested({key: value for key, value in brought.items() if key.split(".")[0] == "student"})
    conversions = students.get("student", {}).get("conversions", {})
    kept = {key: value for key, value in table["student"].get("conversions", {}).items() if key not in conversions}
    table["student"] = {**table["student"], "conversions": kept}
    return merge(table, {"loss": {"name": loss}}, more)


def prepare_baseline(
    baseline: Baseline, catalog: Catalog, reporter: Reporter, train: TrainRun, dry_run: bool, ranks: Ranks = ALONE
) -> None:
    """Train it into the cache, by `train`. A dry run only tells the cost of that. Raises RkdError."""

    def run(path: Path, resume: bool) -> None:
        title = f"baseline {baseline.loss}"
        train(baseline.table, catalog, path, reporter, title=title, dry_run=dry_run, resume=resume, ranks=ranks)

    if dry_run:
        run(baseline.folder, False)
        return
    how = "its own settings are --set baseline.train.KEY=VALUE, such as baseline.train.optimizer.lr=0.01"
    prepare_into(baseline.folder, f"the baseline {baseline.loss}", run, reporter, ranks, how)


def baseline_results(
    baseline: Baseline, plan: Plan, catalog: Catalog, device: torch.device, student: Mapping[str, Any],
    evaluated: Callable[[nn.Module, str], Evaluation],
) -> dict[str, Any]:  # fmt: skip
    """The baseline's evaluation, and the `student`'s difference to it, as evaluation.json has them."""
    folder = RunFolder.open(baseline.folder)
    own, asked = parse(read_recipe(folder.config)).evaluate, plan.config.evaluate
    if (own.attacks, own.limit, own.options) == (asked.attacks, asked.limit, asked.options):
        found = folder.read_json(folder.evaluation)["student"]
    else:
        net = from_sources(TeacherReference(str(folder.path), "baseline"), plan.data, catalog, "run")
        assert net is not None, "it is the folder of a finished run"
        found = evaluated(net.to(device), f"baseline {baseline.loss}").summary()
    about = {"loss": baseline.loss, "model": plan.config.student.model, "source": f"prepared ({folder.path})"}
    return about | found | {"difference": differences(student, found)}


def differences(student: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[float]]:
    """The student's accuracies less the other net's, each with the ends of its 95 % interval over test images."""
    count = student["samples"]
    mine, others = ({name: unpacked(bits, count) for name, bits in s["right"].items()} for s in (student, other))
    both = {name: (mine[name].double(), others[name].double()) for name in mine if name in others}
    clean, worst = both["clean"], both["worst_case"]
    both["w_robust"] = ((clean[0] + worst[0]) / 2, (clean[1] + worst[1]) / 2)
    return {name: list(difference(*pair)) for name, pair in both.items()}

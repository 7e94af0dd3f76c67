"""Teachers: found where their reference says, or prepared on demand and cached.

A prepared teacher is an ordinary run in the cache folder, named by a hash of its whole configuration and the data's
fingerprint. Two processes that want the same one: the first prepares it under a file lock, the second waits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from rkd import __version__
from rkd.core.errors import Refused, RkdError, TrainingFailed, WeightsError
from rkd.distributed.ranks import ALONE, Ranks
from rkd.nets.net import Net, NetTeacher
from rkd.nets.sources import TeacherReference
from rkd.storage.runfolder import RunFolder

from ..registry.catalog import Catalog
from ..registry.config import Table, TeacherConfig, merge, parse, read_recipe
from .build import build_net, choose_device, choose_precision
from .cache import cache_folder
from .foreign import check_fits, from_sources, normalize
from .resolve import Plan

if TYPE_CHECKING:
    from .train import Reporter


@dataclass
class Found:
    """A teacher with where it came from; `results` are its own run's, where it has one.

    A `missing` one has yet to be prepared (`prepare`): its net is untrained, but of the right architecture.
    """

    teacher: NetTeacher
    reference: TeacherReference
    source: str
    results: Mapping[str, Any] | None = None
    missing: bool = False


ROLE_RECIPES: dict[str, Table] = {
    "robust": {"loss": {"name": "trades"}},
    "clean": {"loss": {"name": "ce"}},
}
"""How a missing teacher is prepared, by role. A loss may bring others in its `prepare`."""


LARGE = 10_000_000
"""Parameters above which a data set's `large` recipe goes on top of its usual one."""


def find_teachers(plan: Plan, catalog: Catalog, reporter: Reporter, ranks: Ranks = ALONE) -> list[Found]:
    """All teachers of a plan, on the device. Nothing is prepared yet. Raises RkdError, WeightsError."""
    return [_find(reference, plan, catalog, reporter, ranks) for reference in plan.teachers]


def _find(reference: TeacherReference, plan: Plan, catalog: Catalog, reporter: Reporter, ranks: Ranks = ALONE) -> Found:
    config = _config(reference, plan)
    missing = False

    net = from_sources(reference, plan.data, catalog)
    source, results = reference.text, None
    if net is None:
        if reference.weights or reference.model is None:
            raise RkdError(f"no teacher source understands {reference.text!r}")
        net = build_net(reference.model, reference.options, plan.data, catalog)
        folder = _place(_recipe(reference, config.train, plan, net), reference, plan)
        # Another job may put it there at any moment: one process looks for all.
        missing = ranks.from_first(not (folder / "evaluation.json").is_file())
        source = "not prepared yet"
        if not missing:
            prepared = from_sources(TeacherReference(str(folder), reference.role), plan.data, catalog, "run")
            assert prepared is not None, "it is the folder of a finished run"
            net = prepared
            source, results = f"prepared ({folder})", _results(RunFolder.open(folder), plan)
    device = choose_device(plan.config.device)
    net = net.to(device)
    normalize(
        net, reference, config.normalize, f"teacher {reference.text}", plan.data,
        lambda text: reporter.message(f"{text}; `normalize` in the recipe's [[teachers]] settles it"),
    )  # fmt: skip
    if isinstance(net, Net):
        net.autocast = choose_precision(plan.config.precision, device)
    try:
        check_fits(net, f"the teacher {reference.text!r}", plan.data, device)
    except Refused as error:
        raise WeightsError(str(error)) from None
    return Found(NetTeacher(net, reference.role), reference, source, results, missing)


def _results(folder: RunFolder, plan: Plan) -> Mapping[str, Any] | None:
    """What the teacher's own run found out, if it was evaluated as this plan wants it."""
    own = parse(read_recipe(folder.config)).evaluate
    wanted = plan.config.evaluate
    same = (own.attacks, own.limit, own.options) == (wanted.attacks, wanted.limit, wanted.options)
    return folder.read_json(folder.evaluation) if same else None


def _config(reference: TeacherReference, plan: Plan) -> TeacherConfig:
    return next(t for t in plan.config.teachers if t.role == reference.role)


def prepare(
    missing: Found, plan: Plan, catalog: Catalog, reporter: Reporter, dry_run: bool = False, ranks: Ranks = ALONE
) -> Found:
    """Train a missing teacher into the cache. A dry run only tells what that costs. Raises RkdError."""
    from .train import execute

    reference = missing.reference
    table = _recipe(reference, _config(reference, plan).train, plan, missing.teacher.net)
    folder = _place(table, reference, plan)
    work = folder.with_name(f"{folder.name}.part")

    def train(resume: bool = False) -> None:
        execute(
            table, catalog, work, reporter, title=f"{reference.role} teacher {reference.model}", dry_run=dry_run,
            resume=resume, limit_minutes=plan.config.prepare_minutes,
            how_to_avoid=f"give weights (--teacher {reference.role}={reference.model}@FILE) or a finished run "
            f"(--teacher {reference.role}=RUN), choose a smaller model, or allow it with "
            "--set prepare_minutes=MINUTES", ranks=ranks,
        )  # fmt: skip

    if dry_run:
        train()
        return missing
    with _alone(folder, reporter, ranks):
        if ranks.from_first(not (folder / "evaluation.json").is_file()):
            begun = RunFolder(work)
            if ranks.first:
                shutil.rmtree(folder, ignore_errors=True)  # an earlier version's half
            if not ranks.from_first(begun.finished):
                _prepare(begun, train, reporter, ranks)
            ranks.once(lambda: work.rename(folder))
    return _find(reference, plan, catalog, reporter, ranks)


def _prepare(begun: RunFolder, train: Callable[[bool], None], reporter: Reporter, ranks: Ranks) -> None:
    """Prepare a teacher, or go on with one whose preparation was killed."""
    if ranks.from_first(begun.config.is_file()):
        reporter.message(f"continuing with the teacher that another process began ({begun.path})")
        try:
            return train(True)
        except RkdError as error:
            # Whatever is wrong with what was left there, the user has not asked for it by name.
            reporter.message(f"it cannot be continued ({error}); it is prepared anew")
    ranks.once(lambda: shutil.rmtree(begun.path, ignore_errors=True))
    try:
        train(False)
    except TrainingFailed:
        if ranks.first:
            shutil.rmtree(begun.path, ignore_errors=True)
        raise


@contextmanager
def _alone(folder: Path, reporter: Reporter, ranks: Ranks) -> Iterator[None]:
    """Inside, no other job prepares this very teacher."""
    lock = FileLock(f"{folder}.lock")

    def acquired(seconds: float) -> bool:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            place = f"the cache folder {folder.parent}"
            raise RkdError(f"cannot write into {place}: {error.strerror}; set RKD_CACHE") from None
        return True

    if not ranks.once(lambda: acquired(1)):
        reporter.message(f"waiting for another process that prepares {folder}")
        # From time to time the other processes of this job hear that it still waits.
        while not ranks.once(lambda: acquired(60)):
            continue
    try:
        yield
    finally:
        if ranks.first:
            lock.release()


def _place(table: Table, reference: TeacherReference, plan: Plan) -> Path:
    # The attacks of the evaluation, the device, checkpoints and the place of the data change nothing about the teacher.
    table = {key: value for key, value in table.items() if key not in ("evaluate", "device", "checkpoint")}
    table["data"] = {key: value for key, value in table["data"].items() if key not in ("dir", "download")}
    digest = hashlib.sha256(
        json.dumps([__version__, table, plan.data.fingerprint], sort_keys=True).encode()
    ).hexdigest()[:12]
    # All three may be a stranger's: a recipe names the role, a plugin the data set.
    name = "-".join([*map(_slug, (plan.data.name.split(":")[0], reference.role, reference.model)), digest])
    return cache_folder() / "teachers" / name


def _recipe(reference: TeacherReference, train: Mapping[str, Any], plan: Plan, net: torch.nn.Module) -> Table:
    """The configuration that prepares a teacher: the run's data, attacker and seed, the role's loss.

    A data set may ask for less of large nets: they need fewer epochs, and each costs more.
    """
    config = plan.config
    prepare = dict(getattr(plan.loss, "prepare", {}).get(reference.role, {}))
    prepare.pop("student", None)
    if not prepare and reference.role not in ROLE_RECIPES:
        raise RkdError(
            f"no recipe prepares a teacher in the role {reference.role!r} (there is {', '.join(ROLE_RECIPES)}); "
            f"give weights: --teacher {reference.role}={reference.model}@FILE"
        )
    base = {
        "seed": config.seed,
        "device": config.device,
        "precision": config.precision,
        "data": config.data.model_dump(),
        "threat": config.threat.model_dump(exclude_none=True),
        "student": {**reference.options, "model": reference.model},
        "evaluate": config.evaluate.model_dump(exclude_none=True),
        "checkpoint": config.checkpoint.model_dump(),
    }
    if config.auto_batch:
        base["auto_batch"] = True
    if config.grad_accumulation > 1:  # a batch that is too large for the student's training is so for a teacher's
        base["grad_accumulation"] = config.grad_accumulation
    custom = plan.data.teachers.get(reference.role, {})
    large = sum(p.numel() for p in net.parameters()) > LARGE
    recipes = [custom.get("recipe", {}), custom.get("large", {}) if large else {}]
    return merge(ROLE_RECIPES.get(reference.role, {}), *recipes, prepare, base, train)


def _slug(name: str | None) -> str:
    return "".join(c if (c.isascii() and c.isalnum()) or c in "-_." else "-" for c in name or "")[:60].lstrip(".")

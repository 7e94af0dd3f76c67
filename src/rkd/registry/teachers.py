"""Teachers: found where their reference says, or prepared on demand and cached.

A prepared teacher is an ordinary run in the cache folder, named by a hash of its whole configuration and the data's
fingerprint. Two processes that want the same one: the first prepares it under a file lock, the second waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from rkd import __version__
from rkd.core import ops
from rkd.core.data import Dataset, fetch
from rkd.core.distributed import ALONE, Ranks
from rkd.core.errors import Refused, RkdError, TrainingFailed, WeightsError
from rkd.core.interfaces import TeacherReference
from rkd.core.modes import running
from rkd.core.nets import Net, NetTeacher, check_logits
from rkd.core.runfolder import RunFolder

from .build import build_net, choose_device, choose_precision
from .catalog import Catalog
from .config import Table, TeacherConfig, merge, parse, read_recipe
from .resolve import Plan

if TYPE_CHECKING:
    from .execute import Reporter


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


def cache_folder() -> Path:
    """`RKD_CACHE`, else `$XDG_CACHE_HOME/rkd`, else `~/.cache/rkd`."""
    if "RKD_CACHE" in os.environ:
        return Path(os.environ["RKD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rkd"


def _find(reference: TeacherReference, plan: Plan, catalog: Catalog, reporter: Reporter, ranks: Ranks = ALONE) -> Found:
    config = _config(reference, plan)
    missing = False

    def untrained(name: str, options: Mapping[str, Any] | None = None) -> Net:
        return build_net(name, options or {}, plan.data, catalog)

    for name in catalog.names("teacher"):
        net = catalog.create("teacher", name)(reference, untrained, plan.data)
        if net is not None:
            source, results = reference.text, None
            break
    else:
        if reference.weights or reference.model is None:
            raise RkdError(f"no teacher source understands {reference.text!r}")
        net = untrained(reference.model, reference.options)
        folder = _place(_recipe(reference, config.train, plan, net), reference, plan)
        # Another job may put it there at any moment: one process looks for all.
        missing = ranks.from_first(not (folder / "evaluation.json").is_file())
        source, results = "not prepared yet", None
        if not missing:
            net = catalog.create("teacher", "run")(TeacherReference(str(folder), reference.role), untrained, plan.data)
            source, results = f"prepared ({folder})", _results(RunFolder.open(folder), plan)
    device = choose_device(plan.config.device)
    net = net.to(device)
    stored = isinstance(net, Net) and net.mean.flatten().tolist() != torch.tensor(plan.data.mean).tolist()
    if reference.weights and isinstance(net, Net) and not stored:
        settle_normalization(
            net, config.normalize, f"teacher {reference.text}", plan.data,
            lambda text: reporter.message(f"{text}; `normalize` in the recipe's [[teachers]] settles it"),
        )  # fmt: skip
    if isinstance(net, Net):
        net.autocast = choose_precision(plan.config.precision, device)
    _check(net, reference, plan.data, device)
    return Found(NetTeacher(net, reference.role), reference, source, results, missing)


def _results(folder: RunFolder, plan: Plan) -> Mapping[str, Any] | None:
    """What the teacher's own run found out, if it was evaluated as this plan wants it."""
    own = parse(read_recipe(folder.config)).evaluate
    wanted = plan.config.evaluate
    same = (own.attacks, own.limit, own.options) == (wanted.attacks, wanted.limit, wanted.options)
    return folder.read_json(folder.evaluation) if same else None


def _config(reference: TeacherReference, plan: Plan) -> TeacherConfig:
    return next(t for t in plan.config.teachers if t.role == reference.role)


def _check(net: torch.nn.Module, reference: TeacherReference, data: Dataset, device: torch.device) -> None:
    batch = fetch(data.train, torch.arange(min(2, len(data.train))), device)
    try:
        with running(net, "eval"), torch.no_grad():
            check_logits(net(batch.x), len(batch), len(data.classes), f"the teacher {reference.text!r}")
    except Refused as error:
        raise WeightsError(str(error)) from None
    except RuntimeError as error:
        first = str(error).split("\n")[0]
        raise WeightsError(
            f"the teacher {reference.text!r} cannot take images {data.shape} of {data.name!r}: {first}"
        ) from None


def settle_normalization(net: Net, wish: str, name: str, data: Dataset, say: Callable[[str], None]) -> None:
    """Set what `net` normalises with, as far as `wish` leaves it open (`auto`, `data`, `none`).

    A weights file does not say what its net was fed with: most robust checkpoints of the field take [0, 1] as is.
    """
    if wish == "data":
        return
    plain = Net(net.arch, (0.0,), (1.0,)).to(net.mean.device)
    if wish == "auto":
        batch = fetch(data.train, torch.arange(min(512, len(data.train))), net.mean.device)
        right = {}
        for option, candidate in (("data", net), ("none", plain)):
            with running(candidate, "eval"), torch.no_grad():
                parts = zip(batch.x.split(64), batch.y.split(64), strict=True)
                right[option] = float(torch.cat([ops.correct(candidate(x), y) for x, y in parts]).float().mean())
        chosen = "none" if right["none"] > right["data"] else "data"
        say(
            f"{name}: {max(right.values()):.1%} of {len(batch)} training images right with normalize={chosen} "
            f"({min(right.values()):.1%} with the other)"
        )
        if chosen == "data":
            return
    net.mean, net.std = plain.mean, plain.std


def prepare(
    missing: Found, plan: Plan, catalog: Catalog, reporter: Reporter, dry_run: bool = False, ranks: Ranks = ALONE
) -> Found:
    """Train a missing teacher into the cache. A dry run only tells what that costs. Raises RkdError."""
    from .execute import execute

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
    if config.grad_accumulation > 1:  # a batch that is too large for the student's training is so for a teacher's
        base["grad_accumulation"] = config.grad_accumulation
    custom = plan.data.teachers.get(reference.role, {})
    large = sum(p.numel() for p in net.parameters()) > LARGE
    recipes = [custom.get("recipe", {}), custom.get("large", {}) if large else {}]
    return merge(ROLE_RECIPES.get(reference.role, {}), *recipes, prepare, base, train)


def _slug(name: str | None) -> str:
    return "".join(c if (c.isascii() and c.isalnum()) or c in "-_." else "-" for c in name or "")[:60].lstrip(".")

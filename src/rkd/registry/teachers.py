"""Teachers: found where their reference says, or prepared on demand and cached.

A prepared teacher is an ordinary run in the cache folder, named by a hash of its whole configuration and the data's
fingerprint. Two processes that want the same one: the first prepares it under a file lock, the second waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from rkd.core import ops
from rkd.core.data import Dataset, fetch
from rkd.core.errors import Refused, RkdError, WeightsError
from rkd.core.interfaces import TeacherReference
from rkd.core.modes import running
from rkd.core.nets import Net, NetTeacher, check_logits
from rkd.core.runfolder import RunFolder

from .build import Plan, build_net, choose_device, choose_precision
from .catalog import Catalog
from .config import Table, merge

if TYPE_CHECKING:
    from .execute import Reporter


@dataclass
class Found:
    """A teacher with where it came from; `results` are its own run's, where it has one."""

    teacher: NetTeacher
    reference: TeacherReference
    source: str
    results: Mapping[str, Any] | None = None


ROLE_RECIPES: dict[str, Table] = {
    "robust": {"loss": {"name": "trades"}},
    "clean": {"loss": {"name": "ce"}},
}
"""How a missing teacher is prepared, by role. A loss may bring others in its `prepare`."""


def find_teachers(plan: Plan, catalog: Catalog, reporter: Reporter) -> list[Found]:
    """All teachers of a plan, on the device. Raises RkdError, WeightsError."""
    return [_find(reference, plan, catalog, reporter) for reference in plan.teachers]


def cache_folder() -> Path:
    """`RKD_CACHE`, else `$XDG_CACHE_HOME/rkd`, else `~/.cache/rkd`."""
    if "RKD_CACHE" in os.environ:
        return Path(os.environ["RKD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rkd"


def _find(reference: TeacherReference, plan: Plan, catalog: Catalog, reporter: Reporter) -> Found:
    config = next(t for t in plan.config.teachers if t.role == reference.role)

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
        folder = _prepare(reference, config.train, plan, catalog, reporter)
        net = catalog.create("teacher", "run")(TeacherReference(str(folder), reference.role), untrained, plan.data)
        source, results = f"prepared ({folder})", RunFolder.open(folder).read_json(folder / "evaluation.json")
    if reference.weights and isinstance(net, Net):
        _normalise(net, config.normalize, reference, plan.data, reporter)
    device = choose_device(plan.config.device)
    net = net.to(device)
    if isinstance(net, Net):
        net.autocast = choose_precision(plan.config.precision, device)
    _check(net, reference, plan.data, device)
    return Found(NetTeacher(net, reference.role), reference, source, results)


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


def _normalise(net: Net, wish: str, reference: TeacherReference, data: Dataset, reporter: Reporter) -> None:
    """A weights file does not say what its net was fed with: most robust checkpoints of the field take [0, 1] as is."""
    if wish == "data":
        return
    plain = Net(net.arch, (0.0,), (1.0,))
    if wish == "auto":
        part = torch.arange(min(512, len(data.train)))
        right = {}
        for name, candidate in (("data", net), ("none", plain)):
            batch = fetch(data.train, part)
            with running(candidate, "eval"), torch.no_grad():
                right[name] = float(
                    torch.cat([ops.correct(candidate(x), y) for x, y in zip(batch.x.split(64), batch.y.split(64), strict=True)])
                    .float()
                    .mean()
                )
        chosen = "none" if right["none"] > right["data"] else "data"
        reporter.message(
            f"teacher {reference.text}: {max(right.values()):.1%} of {len(part)} training images right with "
            f"normalize={chosen} ({min(right.values()):.1%} with the other); fix it with normalize = \"{chosen}\""
        )
        if chosen == "data":
            return
    net.mean, net.std = plain.mean, plain.std


def _prepare(
    reference: TeacherReference, train: Mapping[str, Any], plan: Plan, catalog: Catalog, reporter: Reporter
) -> Path:
    """The folder of the prepared teacher; trains it first if the cache does not hold it."""
    from .execute import execute

    table = _recipe(reference, train, plan)
    digest = hashlib.sha256(json.dumps([table, plan.data.fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "teachers" / f"{plan.data.name.split(':')[0]}-{reference.role}-{_slug(reference.model)}-{digest}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RkdError(f"cannot make the cache folder {folder.parent}: {error.strerror}; set RKD_CACHE") from None
    with FileLock(f"{folder}.lock"):
        if not (folder / "evaluation.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            work = folder.with_name(f"{folder.name}.{os.getpid()}.part")
            shutil.rmtree(work, ignore_errors=True)
            title = f"{reference.role} teacher {reference.model}"
            try:
                execute(
                    table, catalog, work, reporter, title=title, limit_minutes=plan.config.prepare_minutes,
                    how_to_avoid=f"give weights (--teacher {reference.role}={reference.model}@FILE) or a finished run "
                    f"(--teacher {reference.role}=RUN), choose a smaller model, or allow it with "
                    "--set prepare_minutes=MINUTES",
                )  # fmt: skip
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _recipe(reference: TeacherReference, train: Mapping[str, Any], plan: Plan) -> Table:
    """The configuration that prepares a teacher: the run's data, attacker and seed, the role's loss."""
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
    }
    custom = plan.data.teachers.get(reference.role, {}).get("recipe", {})
    return merge(ROLE_RECIPES.get(reference.role, {}), custom, prepare, base, train)


def _slug(name: str | None) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name or "")

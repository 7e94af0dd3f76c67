"""A run's manifest: when, where, with which software and at what cost it ran; which of it a resumed run shares."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rkd.core.errors import RkdError
from rkd.core.run import Run
from rkd.core.types import Shape
from rkd.distributed.ranks import ALONE, Ranks
from rkd.evaluation.journal import fingerprint
from rkd.nets.net import NetTeacher
from rkd.nets.student import NetStudent
from rkd.profiling.size import size_of
from rkd.registry.catalog import Catalog
from rkd.storage.runfolder import RunFolder
from rkd.training.dry_run import StepCost

from .build import choose_device
from .objects.record import given_parts
from .plan import Plan
from .preparing.teachers import ResolvedTeacher

COMPARED = ("python", "torch", "torchvision", "numpy")
"""Packages whose version may change the last bits of a result."""


def manifest_of(plan: Plan, catalog: Catalog, run: Run, ranks: Ranks = ALONE) -> dict[str, Any]:
    """What is known before the training starts, but for the teachers and the cost. `objects` are the parts that cannot
    be repeated from config.toml."""
    environment = environment_of(catalog, run.device, ranks.size)
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed": 0,
        "process": f"{os.getpid()} on {platform.node() or 'this machine'}",
        "seed": plan.config.seed,
        **{key: environment[key] for key in ("versions", "plugins", "hardware")},
        "precision": str(plan.config.precision),
        "data": {"name": plan.data.name, "fingerprint": plan.data.fingerprint, "train": len(plan.data.train)}
        | ({"limit_train": limit} if (limit := plan.config.data.limit_train) else {}),
        "git": environment["git"],
        "command": sys.argv,
        "launch": ranks.launch,
        **({"objects": objects} if (objects := given_parts(plan.config, catalog)) else {}),
    }


def manifest_of_evaluation(
    plan: Plan, catalog: Catalog, ranks: Ranks, command: Sequence[str], started: float
) -> dict[str, Any]:
    """Of an evaluation by `rkd eval --save` that began at `started`, in seconds since 1970, and ends now."""
    began = datetime.datetime.fromtimestamp(started, datetime.UTC)
    return {
        **environment_of(catalog, choose_device(plan.config.device), ranks.size),
        "started": began.isoformat(timespec="seconds"),
        "seed": plan.config.seed,
        "data": {"name": plan.data.name, "fingerprint": plan.data.fingerprint},
        "command": list(command),
        "status": "finished",
        "seconds": round(time.time() - started, 2),
    }


def environment_of(catalog: Catalog, device: torch.device, processes: int) -> dict[str, Any]:
    """Software and hardware of this process."""
    packages = ("rkd-toolkit", "torch", "torchvision", "timm", "numpy", "safetensors", "pluggy", "pydantic")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "plugins": {p.key: p.version for p in catalog.plugins.plugins.values() if not p.error and not p.disabled},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "tf32": _tf32(device),
            "processes": processes,
        },
        "git": _git(),
    }


def cost_of(card: StepCost) -> dict[str, Any]:
    """Forwards and backwards of each net in a step."""
    return {name: {"forwards": c.forwards, "backwards": c.backwards} for name, c in card.counts.items()}


def weights_of(teachers: list[ResolvedTeacher]) -> dict[str, str]:
    """A hash of each teacher's weights, by role: a run that goes on with other teachers would be another run."""
    return {t.reference.role: fingerprint(*t.teacher.net.state_dict().values()) for t in teachers}


def engine_of(run: Run) -> list[str]:
    """How the student ran while it was attacked, and teachers that ran in another way than as they are."""
    teachers = {role: teacher for role, teacher in run.teachers.items() if isinstance(teacher, NetTeacher)}
    student = run.student.accelerator.choices() if isinstance(run.student, NetStudent) else []
    return (student or ["plain"]) + [
        f"teacher {role}: {name}" for role, t in teachers.items() for name in t.accelerator.choices() if name != "plain"
    ]


def sizes_of(net: nn.Module, shape: Shape, teachers: Sequence[ResolvedTeacher] = ()) -> dict[str, Any]:
    """`rkd.profiling.size.size_of` of a net, and of its teachers by role. One that does not run for a single image on
    a CPU has an `error` instead: a finished run is not lost for that."""

    def sized(net: nn.Module) -> dict[str, Any]:
        try:
            return size_of(net, shape)
        except Exception as error:  # a net's own code
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}

    found: dict[str, Any] = {"student": sized(net)}
    return found | {"teachers": {t.reference.role: sized(t.teacher.net) for t in teachers}}


def earlier_manifest(folder: RunFolder) -> dict[str, Any]:
    """The manifest of a run's earlier part; empty where there is none that can be read."""
    try:
        content = folder.read_json(folder.manifest)
    except RkdError:
        return {}
    types = {"teachers": dict, "objects": dict, "versions": dict, "hardware": dict, "plugins": dict, "resumed": int,
             "started": str}  # fmt: skip
    table = content if isinstance(content, dict) else {}
    return {key: value for key, value in table.items() if isinstance(value, types.get(key, object))}


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may keep a continued run from ending bit for bit where it would have, a sentence each.

    Raises RkdError for a teacher that is another one now.
    """
    for role, weights in now["teachers"].items():
        old = earlier.get("teachers", {}).get(role, weights)
        if old != weights:
            raise RkdError(
                f"the {role} teacher's weights have changed since this run began: put the old ones back, or start a "
                "new run"
            )
    notes = []
    versions = earlier.get("versions", {})
    changed = [f"{p} {versions[p]} -> {now['versions'][p]}" for p in COMPARED
               if p in versions and versions[p] != now["versions"][p]]  # fmt: skip
    hardware = earlier.get("hardware", {})
    changed += [f"{key} {hardware[key]} -> {now['hardware'][key]}" for key in ("cpu_threads", "device", "processes")
                if key in hardware and hardware[key] != now["hardware"][key]]  # fmt: skip
    if changed:
        notes.append(
            f"since the run began: {', '.join(changed)}; it may end with other last bits than it would have otherwise"
        )
    return notes


def try_to_write(folder: RunFolder, content: dict[str, Any]) -> None:
    """Write the manifest of a run that failed, if that can be done."""
    try:
        folder.write_json(folder.manifest, content)
    except RkdError:
        return  # the disk that broke the run may break this too; the first error is the one to show


def _tf32(device: torch.device) -> dict[str, bool]:
    """Whether float32 is multiplied with 10 bits of mantissa (TensorFloat-32): torch's own default for convolutions."""
    return {
        "matmul": device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32,
        "convolution": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
    }


def _git() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""What a run's manifest says: when, where, with what and at what cost it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import torch

from rkd.core.errors import RkdError
from rkd.core.trainer import Run
from rkd.evaluation.journal import fingerprint
from rkd.storage.runfolder import RunFolder
from rkd.training.dry_run import CostCard

from ..registry.catalog import Catalog
from .engine import all_searches
from .resolve import Plan
from .teachers import Found


def manifest_of(plan: Plan, catalog: Catalog, run: Run) -> dict[str, Any]:
    """What is known before the training starts, but for the teachers and the cost."""
    found = surroundings(catalog, run.device, run.ranks.size)
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed": 0,
        "process": f"{os.getpid()} on {platform.node() or 'this machine'}",
        "seed": plan.config.seed,
        **{key: found[key] for key in ("versions", "plugins", "hardware")},
        "precision": str(plan.config.precision),
        "data": {"name": plan.data.name, "fingerprint": plan.data.fingerprint},
        "git": found["git"],
        "command": sys.argv,
        "launch": run.ranks.launch,
    }


def surroundings(catalog: Catalog, device: torch.device, processes: int) -> dict[str, Any]:
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


def cost_of(card: CostCard) -> dict[str, Any]:
    """Forwards and backwards of each net in a step."""
    return {name: {"forwards": c.forwards, "backwards": c.backwards} for name, c in card.counts.items()}


def weights_of(found: list[Found]) -> dict[str, str]:
    """A hash of each teacher's weights, by role: a run that goes on with other teachers would be another run."""
    return {f.reference.role: fingerprint(*f.teacher.net.state_dict().values()) for f in found}


def engine_of(run: Run) -> list[str]:
    """How the student ran while it was attacked, and teachers that ran in another way than as they are."""
    searches = all_searches(run)
    student = searches.pop("student", None)
    found = (student.choices() if student else []) or ["plain"]
    return found + [f"{who}: {way}" for who, one in searches.items() for way in one.choices() if way != "plain"]


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
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

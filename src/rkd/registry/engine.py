"""How a run's searches run: what was asked for, and where choices are remembered."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rkd.core.engine.choose import questions
from rkd.core.engine.searches import Searches
from rkd.core.errors import RkdError
from rkd.core.files import write_atomic
from rkd.core.machine import cpu_name
from rkd.core.nets import NetStudent
from rkd.core.text import parse_json
from rkd.core.trainer import Run

from .cache import cache_folder
from .resolve import Plan

MOST = 4096
"""Bytes of a remembered choice at most."""


def attach(run: Run, plan: Plan) -> None:
    """Give the student's searches the engine that the configuration asks for; choices are kept in the cache.

    A choice depends on times, and with it the last digits of what is computed. Remembered, it is the same for all runs
    of the same net on the same machine.
    """
    if not isinstance(run.student, NetStudent):
        return
    cache = cache_folder() / "engine"
    steps = run.epochs * -(-len(run.loader.split) // run.loader.batch_size)
    searches = steps * sum(questions(attack.attack) for attack in plan.attacks.values())
    run.student.searches = Searches(
        plan.config.engine, queries=searches, machine=f"{_machine(run.device)}, batches of {run.loader.batch_size}",
        recall=lambda key: _read(cache / f"{key}.json"), keep=lambda key, what: _write(cache / f"{key}.json", what),
    )  # fmt: skip


def remember(run: Run, folder: Path, first: bool, tell: Callable[[str], None]) -> None:
    """Keep choices in the run's folder as well: a continued run goes on as it began, whatever the cache holds.

    `first`: whether this process writes. `tell` is told of what is measured and chosen.
    """
    if not isinstance(run.student, NetStudent) or run.student.searches is None:
        return
    searches, path = run.student.searches, folder / "engine.json"
    searches.tell = tell
    recall, keep = searches.recall, searches.keep

    def recall_here(key: str) -> Mapping[str, Any] | None:
        there = (_read(path) or {}).get(key)
        found = there if isinstance(there, dict) else recall(key)
        if found is not None and there is None:
            note(key, dict(found))
        return found

    def note(key: str, what: dict[str, Any]) -> None:
        if first:
            _write(path, dict(_read(path) or {}) | {key: what})

    def keep_here(key: str, what: dict[str, Any]) -> None:
        note(key, what)
        keep(key, what)

    searches.recall, searches.keep = recall_here, keep_here


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor()} {cpu_name()}"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, rkd {version('rkd-toolkit')}"


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, RkdError):
        if path.stat().st_size <= MOST:
            found = parse_json(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
    return None


def _write(path: Path, what: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError, RkdError):  # a choice that cannot be remembered is made again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(what).encode())

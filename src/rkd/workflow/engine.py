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

from rkd.core.errors import RkdError
from rkd.core.trainer import Run
from rkd.engine.accelerator import Searches
from rkd.engine.choose import questions
from rkd.nets.net import NetStudent, NetTeacher
from rkd.profiling.machine import cpu_name
from rkd.storage.files import write_atomic
from rkd.storage.text import parse_json

from .cache import cache_folder
from .plan import Plan

MOST = 4096
"""Bytes of a remembered choice at most."""


SMALL = 10_000_000
"""Parameters of a teacher up to which a copy of it is made: larger ones gain next to nothing, and take their memory."""


Choices = dict[str, Mapping[str, Any]]
"""How to run which net, by a hash of what that depends on."""


def attach(run: Run, plan: Plan, chosen: Choices | None = None) -> None:
    """Give the student's searches the engine that the configuration asks for; choices are kept in the cache, or in
    `chosen`, if something is only tried.

    A choice depends on times, and with it the last digits of what is computed. Remembered, it is the same for all runs
    of the same net on the same machine.
    """
    if isinstance(run.student, NetStudent):
        gradients = sum(questions(attack.attack) for attack in plan.attacks.values())
        run.student.searches = _searches(run, plan, gradients, chosen=chosen)


def attach_teachers(run: Run, plan: Plan, chosen: Choices | None = None) -> None:
    """The same for small teachers. After a dry step, which counts what nets are asked."""
    for teacher in run.teachers.values():
        if type(teacher) is NetTeacher and sum(weight.numel() for weight in teacher.net.parameters()) <= SMALL:
            teacher.searches = _searches(run, plan, 1, forwards=True, chosen=chosen)


def keep(run: Run, chosen: Choices) -> None:
    """Keep what was chosen in a trial of this very run, so that it need not be measured again."""
    searches = next(iter(all_searches(run).values()), None)
    for key, what in chosen.items():
        if searches is not None and searches.recall(key) is None:
            searches.keep(key, dict(what))


def _searches(
    run: Run, plan: Plan, questions_a_step: int, forwards: bool = False, chosen: Choices | None = None
) -> Searches:
    cache = cache_folder() / "engine"

    def write(key: str, what: dict[str, Any]) -> None:
        if chosen is None:
            _write(cache / f"{key}.json", what)
        else:
            chosen[key] = what

    steps = run.epochs * -(-len(run.loader.split) // run.loader.batch_size)
    return Searches(
        plan.config.engine, queries=steps * questions_a_step, forwards=forwards,
        machine=f"{_machine(run.device)}, batches of {run.loader.batch_size}",
        recall=lambda key: (chosen or {}).get(key) or _read(cache / f"{key}.json"), keep=write,
    )  # fmt: skip


def all_searches(run: Run) -> dict[str, Searches]:
    """Of the student and the teachers, by the words for them."""
    found = {"student": run.student.searches if isinstance(run.student, NetStudent) else None}
    found |= {f"teacher {role}": teacher.searches for role, teacher in run.teachers.items()
              if isinstance(teacher, NetTeacher)}  # fmt: skip
    return {who: searches for who, searches in found.items() if searches is not None}


def remember(run: Run, folder: Path, first: bool, tell: Callable[[str], None]) -> None:
    """Keep choices in the run's folder as well: a continued run goes on as it began, whatever the cache holds.

    `first`: whether this process writes. `tell` is told of what is measured and chosen.
    """
    for searches in all_searches(run).values():
        _remember(searches, folder / "engine.json", first, tell)


def _remember(searches: Searches, path: Path, first: bool, tell: Callable[[str], None]) -> None:
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

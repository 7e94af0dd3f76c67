"""`rkd bench`: a configuration's training step, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rkd.profiling.bench import bench, peaks
from rkd.training.dry_run import dry_step

from ..registry.catalog import Catalog
from .build import build, choose_precision
from .engine import attach, attach_teachers
from .resolve import resolve
from .teachers import find_teachers
from .train import Reporter, Silent


def measure(
    table: Mapping[str, Any], catalog: Catalog, reporter: Reporter | None = None, seconds: float = 10.0
) -> dict[str, Any]:
    """Time the training step of a configuration. Nothing is prepared, trained to the end or written: a teacher that
    is not there yet is taken untrained, which costs the same. What the engine chooses here, in a few seconds on other
    weights, is no choice for a run. Raises RkdError."""
    reporter = reporter or Silent()
    plan = resolve(table, catalog)
    for note in plan.notes:
        reporter.message(note)
    found = find_teachers(plan, catalog, reporter)
    run = build(plan, catalog, {f.reference.role: f.teacher for f in found})
    dry_step(run)
    attach(run, plan, {})
    attach_teachers(run, plan, {})
    dtype = choose_precision(plan.config.precision, run.device) or torch.float32
    machine = peaks(run.device, dtype)
    result = bench(run, seconds)
    steps = len(run.loader) * plan.config.epochs
    return {
        "student": plan.config.student.model,
        "loss": plan.config.loss.name,
        "data": plan.data.name,
        "teachers": {f.reference.role: f.reference.text for f in found},
        "precision": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else str(run.device),
        "threads": torch.get_num_threads(),
        "images": result.images,
        "rounds": result.rounds,
        "step_seconds": result.step,
        "parts_seconds": dict(result.parts),
        "parts_flops": dict(result.flops),
        "flops_per_second": result.rate,
        "machine_flops_per_second": machine,
        "peak_bytes": result.peak_bytes,
        "steps": steps,
        "training_seconds": steps * result.step,
    }

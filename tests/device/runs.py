"""Tiny trainings that differ in their device alone, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rkd.core.run import Run
from rkd.core.trainer import advance
from rkd.data.dataset import Subset
from rkd.registry.catalog import load_catalog
from rkd.testing import tiny_teachers
from rkd.workflow.build import accelerate, build
from rkd.workflow.resolve import resolve

from ..pretend_device import host_waits

CATALOG = load_catalog()
CPU = torch.device("cpu")
SHORT = {"steps": 3, "queries": 6, "targets": 1, "searches": 2, "candidates": 2, "fraction": 0.02}
"""Options of attacks that make them quick, where an attack has them."""
TRAINING, TEST = 24, 16
"""Images of each part."""


def short(attack: str) -> dict[str, Any]:
    """Options with which the attack of that name is quick."""
    options = CATALOG.find("attack", attack).component.__dataclass_fields__
    return {name: value for name, value in SHORT.items() if name in options}


def run_on(device: torch.device, loss: str, **settings: Any) -> Run:
    """A training of a small net, without the engine, on digits: two batches an epoch."""
    table: dict[str, Any] = {
        "device": str(device),
        "loss": {"name": loss},
        "student": {"model": "small-cnn", "width": 4},
        "data": {"name": "digits", "validation": 0},
        "batch_size": TRAINING // 2,
        "epochs": 1,
        "engine": "plain",
    }
    defaults = CATALOG.find("loss", loss).component.defaults
    if "attack" in defaults:
        table["attack"] = {"steps": 3}
    plan = resolve(table | settings, CATALOG)
    train, test = (Subset(part, torch.arange(n)) for part, n in ((plan.data.train, TRAINING), (plan.data.test, TEST)))
    plan.data = replace(plan.data, train=train, test=test)
    teachers = tiny_teachers(plan.loss.roles, plan.data.shape, len(plan.data.classes))
    for teacher in teachers.values():
        teacher.net.to(device)
    run = build(plan, CATALOG, teachers)
    accelerate(run, plan.config.engine)
    return run


def train_an_epoch(run: Run) -> list[str]:
    """The steps of an epoch. Returns the host's waits for the device."""
    run.hooks.hook.rkd_run_start(run=run)
    run.state.batch = 0
    with host_waits() as waits:
        for batch in run.loader.batches(run.state.epoch, run.state.batch):
            advance(run, batch)
    run.monitor.settle(run)
    return waits


def state_of(run: Run) -> dict[str, Tensor]:
    """All tensors that a checkpoint would hold, on the CPU, and what the steps were told to weigh."""
    state = run.state_dict()
    return dict(_tensors("", {**state, "terms": run.terms, "loss": run.loss_value}))


def _tensors(path: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(path, value.detach().cpu())]
    if isinstance(value, Mapping):
        return [found for name, inner in value.items() for found in _tensors(f"{path}.{name}", inner)]
    if isinstance(value, (list, tuple)):
        return [found for place, inner in enumerate(value) for found in _tensors(f"{path}.{place}", inner)]
    return []


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different

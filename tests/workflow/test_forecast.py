"""What a training costs: images counted, times of dry steps, and that finding it out changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.run import Run
from rkd.nets.net import NetTeacher
from rkd.registry.catalog import load_catalog
from rkd.testing import untouched
from rkd.testing.tiny import TinyNet, tiny_net
from rkd.training.dry_run import dry_step
from rkd.workflow import forecast
from rkd.workflow.build import build
from rkd.workflow.forecast import measure, predict, shortened
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import resolve

CATALOG = load_catalog()


def planned(**changes: Any) -> tuple[Run, Plan]:
    table: dict[str, Any] = {
        "loss": {"name": "rslad"},
        "attack": {"steps": 3},
        "student": {"model": "small-cnn", "width": 4},
        "epochs": 4,
        "batch_size": 16,
        "validate": {"steps": 2, "limit": 30, "every": 3},
        **changes,
    }
    plan = resolve(table, CATALOG)
    teachers = {role: NetTeacher(tiny_net(TinyNet, (1, 8, 8), 10), role) for role in plan.loss.roles}
    return build(plan, CATALOG, teachers), plan


@pytest.mark.parametrize(("changes", "samples"), [({}, 16), ({"grad_accumulation": 4}, 4)])
def test_seconds_follow_from_images_and_a_dry_step(
    changes: dict[str, Any], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step on a whole micro-batch takes a second here."""
    run, plan = planned(**changes)
    tried: list[int] = []

    def timed(run: Run, samples: int) -> Any:
        tried.append(samples)
        return replace(dry_step(run, samples), seconds=samples / 17)

    monkeypatch.setattr(forecast, "dry_step", timed)
    seconds, memory = predict(run, plan, dry_step(run))
    # Validations after epochs 3 and 4: a forward and two steps of an attack, where a training step has 3 and 2 views.
    images = 4 * len(run.loader.split) + 2 * 30 * 3 / 5
    assert tried[-1] == samples
    assert seconds == pytest.approx(images / 17)
    assert memory > 0


def test_a_step_that_takes_long_is_tried_on_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def timed(run: Run, samples: int) -> Any:
        tried.append(samples)
        return replace(dry_step(run, samples), seconds=2.0)

    monkeypatch.setattr(forecast, "dry_step", timed)
    run, plan = planned()
    predict(run, plan, dry_step(run))
    assert set(tried) == {8}


def test_the_run_is_left_as_it_was(cache: Path) -> None:
    run, plan = planned(on_nan="skip", schedulers={}, engine="plain")
    card = dry_step(run)
    weights = {name: value.clone() for name, value in run.student.net.state_dict().items()}
    before = copy.copy(vars(run))
    with untouched():
        predict(run, plan, card)
    assert vars(run) == before
    assert all(torch.equal(value, weights[name]) for name, value in run.student.net.state_dict().items())
    assert all(p.grad is None for p in run.student.net.parameters())
    assert not cache.exists()


@pytest.mark.slow
def test_a_bench_writes_nothing(cache: Path) -> None:
    table = {
        "loss": {"name": "trades"}, "attack": {"steps": 1}, "student": {"model": "small-cnn", "width": 4}, "epochs": 3,
        "batch_size": 32, "engine": "plain",
    }  # fmt: skip
    measured = measure(table, CATALOG, seconds=0)
    assert measured["images"] == 32 and measured["training_seconds"] > 0
    assert measured["training_seconds"] == measured["steps"] * measured["step_seconds"]
    assert not cache.exists()


def test_a_run_cut_down_to_two_batches_of_everything() -> None:
    table = {"loss": {"name": "rslad"}, "batch_size": 48, "epochs": 9, "trackers": {"tensorboard": {}}}
    plan = resolve(shortened(table, CATALOG), CATALOG)
    config = plan.config
    assert (config.epochs, config.batch_size, config.preparation_epochs) == (1, 48, 1)
    run = build(plan, CATALOG, {role: NetTeacher(tiny_net(TinyNet, (1, 8, 8), 10), role) for role in plan.loss.roles})
    assert len(run.loader) == 2 and plan.trackers == {}
    assert (config.evaluate.limit, config.evaluate.batch_size, config.validate_.limit) == (32, 16, 32)
    few = resolve(shortened({"loss": {"name": "ce"}, "batch_size": 2}, CATALOG), CATALOG)
    assert len(few.data.train) == 10, "an image of each class"
    assert few.config.preparation_epochs is None

"""What a training will take: what is counted, and that finding it out changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.trainer import Run
from rkd.engine import accelerator as engine
from rkd.nets.net import NetTeacher
from rkd.registry.catalog import load_catalog
from rkd.testing import untouched
from rkd.testing.tiny import TinyNet, tiny_net
from rkd.training.dry_run import dry_step
from rkd.workflow import bench, forecast
from rkd.workflow.build import build
from rkd.workflow.forecast import predict
from rkd.workflow.resolve import Plan, resolve
from rkd.workflow.train import execute

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


@pytest.fixture
def a_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a second, each answer of a teacher 0.4."""
    monkeypatch.setattr(forecast, "_usual", lambda step, taken, share: (step(), 1.0)[1])
    monkeypatch.setattr(forecast, "_answer", lambda teacher, batch: 0.4)
    monkeypatch.setattr(forecast, "PATIENCE", 1e9)


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, 0.75),
        ({"teacher_cache": "off"}, 0.0),
        ({"augments": {"flip": {}}}, 0.0),
        ({"augments": {"flip": {}}, "teacher_cache": "on"}, 1 - 2 * (1 - 0.5**4) / 4),
        ({"augments": {"flip": {}}, "teacher_cache": "on", "teacher_cache_gib": 1e-6}, 0.0),
    ],
)
def test_the_sum(changes: dict[str, Any], again: float, a_second_a_step: None) -> None:
    run, plan = planned(**changes)
    card = dry_step(run)
    count = len(run.loader.split)
    # Validations after epochs 3 and 4: a forward and two steps of an attack, where a training step has 3 and 2 views.
    validated = 2 * 30 * 3 / 5
    seconds, memory = predict(run, plan, card, {})
    assert seconds == pytest.approx((4 * count + validated) * (1 - 0.4 * again) / 16)
    assert memory > 0


def test_a_brief_training_is_told_from_dry_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "BRIEF", 1e9)
    monkeypatch.setattr(forecast, "_as_it_will_run", pytest.fail)
    run, plan = planned()
    assert predict(run, plan, dry_step(run), {})[0] > 0


@pytest.mark.parametrize("changes", [{}, {"augments": {"flip": {}}, "teacher_cache": "on", "engine": "fused"}])
def test_the_run_is_left_as_it_was(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(forecast, "BRIEF", 0)
    run, plan = planned(**changes, on_nan="skip", schedulers={})
    card = dry_step(run)
    weights = {name: value.clone() for name, value in run.student.net.state_dict().items()}
    before, searches = copy.copy(vars(run)), run.student.searches
    with untouched():
        predict(run, plan, card, {})
    assert vars(run) == before and run.student.searches is searches
    assert all(torch.equal(value, weights[name]) for name, value in run.student.net.state_dict().items())
    assert all(p.grad is None for p in run.student.net.parameters())
    assert type(run.teachers["robust"]) is NetTeacher and run.teachers["robust"].searches is None
    assert run.loader.variants is None and not cache.exists()


def long(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every training is long enough for the engine to choose. Returns the numbers of images it chose by."""
    chosen: list[int] = []
    really = engine.choose

    def choose(net, x, **settings):
        chosen.append(len(x))
        return really(net, x, **(settings | {"budget": 0.01}))

    monkeypatch.setattr(engine, "SHORT", 0)
    monkeypatch.setattr(engine, "WORTH", 0)
    monkeypatch.setattr(engine, "LONG", 1e9)
    monkeypatch.setattr(engine, "choose", choose)
    monkeypatch.setattr(forecast, "BRIEF", 0)
    return chosen


TABLE = {
    "loss": {"name": "trades"}, "attack": {"steps": 1}, "student": {"model": "small-cnn", "width": 4}, "epochs": 1,
    "batch_size": 256, "validate": {"steps": 1, "limit": 50}, "evaluate": {"attacks": [], "limit": 16},
}  # fmt: skip


def test_the_engine_chooses_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a whole batch before the training, which takes it over; a dry run keeps nothing of it."""
    chosen = long(monkeypatch)
    monkeypatch.setattr(forecast, "PATIENCE", 1e9)
    execute(TABLE, CATALOG, tmp_path / "run", dry_run=True)
    assert chosen == [256] and not (cache / "engine").exists()
    execute(TABLE, CATALOG, tmp_path / "run")
    assert chosen == [256, 256]
    assert (tmp_path / "run" / "engine.json").is_file() and len(list((cache / "engine").iterdir())) == 1


def test_a_choice_by_fewer_images_is_for_the_forecast_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = long(monkeypatch)
    monkeypatch.setattr(forecast, "PATIENCE", 0)
    execute(TABLE, CATALOG, tmp_path / "run")
    assert chosen == [32, 256]


def test_a_bench_keeps_no_choice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = long(monkeypatch)
    bench.measure(TABLE, CATALOG, seconds=0)
    assert chosen == [256] and not cache.exists()

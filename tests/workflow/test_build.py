"""From a plan to a run: nets, optimiser, loader, device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rkd.core.errors import RkdError
from rkd.core.run import Run
from rkd.engine.accelerator import Engine
from rkd.nets.student import NetStudent
from rkd.registry.catalog import load_catalog
from rkd.testing import tiny_teachers
from rkd.workflow.build import accelerate, build, choose_device, choose_precision
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import resolve

CATALOG = load_catalog()


def plan(loss: str, **table: Any) -> Plan:
    return resolve({"loss": {"name": loss}, **table}, CATALOG)


def run_of(plan: Plan) -> Run:
    return build(plan, CATALOG, tiny_teachers(plan.loss.roles, (1, 8, 8), 10))


def test_a_run_is_what_the_plan_says() -> None:
    resolved = plan(
        "mtard-anl",
        seed=3,
        epochs=5,
        batch_size=16,
        optimizer={"lr": 0.3, "momentum": 0.5, "schedule": "drops(1, 0.5)"},
        student={"model": "small-cnn", "conversions": {"aux-bn": {"joint": True}}},
        data={"name": "digits", "validation": 0.25},
        validate={"every": 2, "limit": 7, "select": "robust"},
    )
    run = run_of(resolved)
    group = run.optimizer.param_groups[0]
    assert (run.seed, run.epochs, run.loader.batch_size, group["momentum"]) == (3, 5, 16, 0.5)
    assert run.lr_schedule(0.6) == 0.1
    assert run.student.joint
    assert run.student.routed == ("adv",)
    assert len(run.loader.split) + len(run.validate.split) == len(resolved.data.train)
    assert (run.validate.every, run.validate.limit, run.validate.select) == (2, 7, "robust")
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in run.student.net.parameters())
    assert list(run.schedulers) == ["anl"]


def test_a_conversion_that_was_taken_out() -> None:
    run = run_of(plan("advprop", student={"conversions": {"aux-bn": False}}))
    assert run.student.router is None


@pytest.mark.parametrize("validation", [0, 0.0])
def test_without_held_out_images(validation: float) -> None:
    run = run_of(plan("kd", data={"name": "digits", "validation": validation}))
    assert run.validate is None


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimisers(name: str) -> None:
    run = run_of(plan("kd", optimizer={"name": name, "lr": 0.01, "weight_decay": 0.1}))
    assert type(run.optimizer).__name__.lower() == name
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("cudaa", "cuda:99", "meta:x"):
        with pytest.raises(RkdError, match="cannot be used"):
            choose_device(name)
    assert choose_precision("bf16", torch.device("cpu")) is torch.bfloat16
    assert choose_precision("fp32", torch.device("cpu")) is None
    assert choose_precision("auto", torch.device("cpu")) is None
    assert choose_precision("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(RkdError, match="fp16 needs a GPU"):
        choose_precision("fp16", torch.device("cpu"))


def test_what_auto_takes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == gpu
    for capability, precision in (((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_precision("auto", gpu) is precision
    assert choose_precision("auto", torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("most", "precision", "name", "copied"),
    [
        (10**7, "fp32", "auto", True),
        (10, "fp32", "auto", False),
        (10, "bf16", "auto", True),
        (10, "fp32", "fused", True),
    ],
)
def test_a_large_student_gets_a_copy_where_that_pays(
    most: int, precision: str, name: str, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rkd.workflow.build.SMALL", most)
    run = run_of(plan("rslad", precision=precision))
    accelerate(run, name)
    assert isinstance(run.student, NetStudent) and isinstance(run.student.accelerator, Engine) is copied

"""Evaluating modules, plans and requests: one function below them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError, RkdError
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.journal import Journal
from rkd.evaluation.samples import EvalSettings
from rkd.nets.net import Net
from rkd.registry.catalog import Catalog
from rkd.storage.serialize import save_weights
from rkd.testing import tiny_net
from rkd.workflow.evaluate import (
    EvalRequest,
    check_plans,
    curve_attack,
    evaluate_and_check,
    evaluate_plan,
    evaluate_request,
)  # fmt: skip
from rkd.workflow.nets import build_net
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import resolve


@pytest.fixture
def weights(tmp_path: Path, catalog: Catalog) -> Path:
    net = build_net("mlp", {}, resolve({}, catalog).data, catalog)
    save_weights(tmp_path / "net.safetensors", net.arch.state_dict())
    return tmp_path / "net.safetensors"


def planned(catalog: Catalog, **rules: Any) -> tuple[Net, Plan]:
    rules = {"attacks": ["fgsm"], "limit": 20, "checks": "off", **rules}
    plan = resolve({"loss": {"name": "ce"}, "evaluate": rules}, catalog)
    return build_net("mlp", {}, plan.data, catalog), plan


def test_a_plan_and_a_module_get_the_same_numbers(catalog: Catalog, tmp_path: Path) -> None:
    net, plan = planned(catalog, curve=[0.05], rounded=True)
    told: list[str] = []
    journal = Journal(tmp_path / "notes")
    result = evaluate_plan(net, plan, catalog, lambda attack, done, total: told.append(attack), journal)
    journal.close()
    same = evaluate_and_check(
        net, plan.data.test, plan.evaluation, EvalSettings(threat=plan.data.threat, limit=20), catalog, "off"
    )
    assert result.accuracy("fgsm") == same.accuracy("fgsm")
    assert {"clean", "fgsm"} <= set(told)
    assert len(result.extra["curve"]["accuracy"]) == len(result.extra["curve"]["eps"])
    assert "curve" not in same.extra


@pytest.mark.slow
def test_checks(catalog: Catalog) -> None:
    split = ArraySplit(torch.rand(24, 1, 8, 8), torch.arange(24) % 3)
    threat = ThreatModel("Linf", 0.1, 0.02)
    plans = check_plans(threat, (1, 8, 8), catalog)
    assert set(plans) == {"fgsm", "short", "long", "large", "unbounded", "margin", "black-box"}
    results = {
        checks: evaluate_and_check(
            tiny_net(classes=3), split, {"fgsm": plans["fgsm"]}, EvalSettings(threat=threat), catalog, checks
        )
        for checks in ("off", "full")
    }  # fmt: skip
    assert set(results["full"].extra["checks"]["attacks"]) == set(plans)
    assert "checks" not in results["off"].extra


@pytest.mark.parametrize(
    ("attacks", "chosen"),
    [(["fgsm", "pgd-sat", "cw"], "pgd-sat"), (["square", "fgsm"], "square"), (["cw-l2", "fgsm"], "fgsm")],
)
def test_the_attack_of_a_curve(attacks: list[str], chosen: str, catalog: Catalog) -> None:
    assert curve_attack(planned(catalog, attacks=attacks)[1].evaluation) == chosen


@pytest.mark.slow
def test_a_weights_file(weights: Path, catalog: Catalog, cache: Path, tmp_path: Path) -> None:
    request = EvalRequest(
        str(weights), model="mlp", dataset="digits", attacks=["pgd-sat"], limit=10, checks="off", curve="usual",
        save=str(tmp_path / "saved"), normalize="data", settings={"evaluate": {"options": {"pgd-sat": {"steps": 2}}}},
    )  # fmt: skip
    summary = evaluate_request(request, catalog)
    assert (summary["model"], summary["data"], summary["samples"]) == ("mlp", "digits", 10)
    assert summary["searches"]["pgd-sat"]["options"]["steps"] == 2
    assert summary["curve"]["attack"] == "pgd-sat"
    assert summary["normalization"]["choice"] == "data" and summary["normalization"]["known"] == "told"
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"evaluation.json", "evaluation.toml", "net.json", "manifest.json", "examples.safetensors"}
    with pytest.raises(RkdError, match="exists already; choose another --save folder"):
        evaluate_request(request, catalog)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"eps": 3}, "--eps: "),
        ({"limit": 10**6}, "--limit: 1000000 is above"),
        ({"norm": "L2"}, "--eps: an L2 radius must be given"),
        ({"attacks": [], "rounded": True}, "--rounded needs an attack"),
        ({"attacks": [], "others": ["x"]}, "--transfer needs an attack"),
        ({"settings": {"evaluate": {"options": {"cw": {"steps": 2}}}}}, "'cw' is not among evaluate.attacks"),
    ],
)
def test_problems_name_the_options_that_gave_the_settings(
    changes: dict[str, Any], problem: str, weights: Path, catalog: Catalog
) -> None:
    request = EvalRequest(str(weights), **{"model": "mlp", "dataset": "digits", "attacks": ["fgsm"], **changes})
    with pytest.raises((ConfigError, RkdError), match=problem):
        evaluate_request(request, catalog)

"""The student without teachers: what it shares with the run, when it is trained, what it is compared by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError
from rkd.evaluation.result import packed
from rkd.registry.catalog import load_catalog
from rkd.storage.runfolder import RunFolder
from rkd.workflow.plan import Silent
from rkd.workflow.preparing.baseline import baseline_of, differences
from rkd.workflow.resolve import resolve
from rkd.workflow.train import train_run

CATALOG = load_catalog()


def table(**changes: Any) -> dict[str, Any]:
    return {
        "loss": {"name": "ard"},
        "student": {"model": "small-cnn", "width": 4},
        "teachers": [{"reference": "small-cnn", "options": {"width": 4}, "train": {"epochs": 1}}],
        "baseline": {"loss": "pgd-at"},
        "epochs": 1,
        "batch_size": 256,
        "attack": {"steps": 1},
        "validate": {"steps": 1, "limit": 50},
        "evaluate": {"attacks": ["fgsm", "pgd-sat"], "limit": 40},
        **changes,
    }


class Listener(Silent):
    def __init__(self) -> None:
        self.trained: list[str] = []

    def training(self, title: str) -> dict[str, Any]:
        self.trained.append(title)
        return {}


@pytest.mark.slow
def test_it_is_trained_once_and_stands_beside_the_student(tmp_path: Path, cache: Path) -> None:
    listener = Listener()
    results = train_run(table(), CATALOG, tmp_path / "ard", listener)
    assert listener.trained == ["robust teacher small-cnn", "baseline pgd-at", "student"]
    baseline = results["baseline"]
    assert (baseline["loss"], baseline["samples"]) == ("pgd-at", 40)
    found = RunFolder.open(tmp_path / "ard")
    assert found.read_json(found.evaluation)["baseline"] == json.loads(json.dumps(baseline))
    student = results["student"]
    for name in ("clean", "worst_case"):
        middle, low, high = baseline["difference"][name]
        assert middle == pytest.approx(student[name] - baseline[name]) and low <= middle <= high

    train_run(table(loss={"name": "rslad"}), CATALOG, tmp_path / "rslad", listener)
    assert listener.trained[3:] == ["student"], "another method with the same seed has the same baseline"
    other = train_run(table(evaluate={"attacks": ["fgsm"], "limit": 30}), CATALOG, tmp_path / "fgsm", listener)
    assert listener.trained[4:] == ["student"] and set(other["baseline"]["attacks"]) == {"fgsm"}
    alone = train_run(_own(table()), CATALOG, tmp_path / "alone", Silent())
    assert alone["student"]["right"] == baseline["right"], "it is the run that `--loss pgd-at` would have been"


def _own(table: dict[str, Any]) -> dict[str, Any]:
    left_out = ("teachers", "baseline", "attack")
    return {key: value for key, value in table.items() if key not in left_out} | {"loss": {"name": "pgd-at"}}


def test_what_belongs_to_the_method_is_its_own() -> None:
    plan = resolve(table(loss={"name": "kd-swa"}, extensions={"ema": {}}, seed=3), CATALOG)
    baseline = baseline_of(plan, CATALOG)
    assert baseline is not None and not baseline.ready
    own = resolve(baseline.table, CATALOG).config
    assert (own.seed, own.epochs, own.loss.name, own.teachers) == (3, 1, "pgd-at", [])
    assert set(own.extensions) == {"ema"}, "swa is what kd-swa brings, ema what the user asked for"
    assert own.attack is not None and own.attack.options["steps"] == 10
    plan = resolve(table(loss={"name": "advprop"}, teachers=[]), CATALOG)
    baseline = baseline_of(plan, CATALOG)
    assert baseline is not None and resolve(baseline.table, CATALOG).config.student.conversions == {}
    plan = resolve(table(baseline={"loss": "trades", "train": {"attack": {"steps": 3}, "epochs": 7}}), CATALOG)
    baseline = baseline_of(plan, CATALOG)
    assert baseline is not None
    own = resolve(baseline.table, CATALOG).config
    assert own.attack is not None and (own.attack.options["steps"], own.epochs) == (3, 7)


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ({"loss": "rslad"}, "baseline: the loss 'rslad' needs teachers (robust)"),
        ({"loss": "pgd-att"}, "baseline: "),
        ({"train": {"optimizer": {"lr": -1}}}, "baseline: optimizer.lr"),
    ],
    ids=str,
)
def test_mistakes_show_before_anything_is_trained(
    baseline: dict[str, Any], words: str, tmp_path: Path, cache: Path
) -> None:
    listener = Listener()
    with pytest.raises(ConfigError) as caught:
        train_run(table(baseline=baseline), CATALOG, tmp_path / "x", listener)
    assert words in str(caught.value)
    assert listener.trained == [] and not (tmp_path / "x").exists()


def test_none_is_asked_for() -> None:
    assert baseline_of(resolve(table(baseline=False), CATALOG), CATALOG) is None


def test_differences_over_the_same_images() -> None:
    mine, others = {"samples": 5, "right": {}}, {"samples": 5, "right": {}}
    for name, a, b in (("clean", "11110", "11000"), ("worst_case", "10000", "11000")):
        mine["right"][name] = packed(torch.tensor([bit == "1" for bit in a]))
        others["right"][name] = packed(torch.tensor([bit == "1" for bit in b]))
    found = differences(mine, others)
    assert found["clean"][0] == pytest.approx(0.4) and found["worst_case"][0] == pytest.approx(-0.2)
    assert found["w_robust"][0] == pytest.approx(0.1)

"""The schema of a run: its defaults, and what is said about settings that do not fit it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from rkd.core.errors import ConfigError
from rkd.registry.config import parse


def problems(table: dict) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(table)
    return error.value.problems


def test_all_problems_at_once() -> None:
    said = problems({"epochs": 0, "seed": -1, "optimizer": {"lr": "x", "momentum": 1.5}, "foo": 1})
    assert len(said) == 5


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"epoch": 3}, "epoch: there is no such setting. Did you mean epochs?"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: there is no such setting"),
        ({"optimizer": {"lrr": 1}}, "Here there is: name, lr, schedule"),
        ({"validate": {"selct": 1}}, "Did you mean select?"),
        ({"teachers": [{"reference": "a", "rol": "b"}]}, "Did you mean role?"),
        ({"loss": "rslad"}, "did you mean loss.name=rslad?"),
        ({"student": "resnet18"}, "did you mean student.model=resnet18?"),
        ({"evaluate": "pgd"}, "evaluate: is a table of settings; did you mean 'evaluate.attacks=[\"pgd\"]'?"),
        ({"evaluate": {"attacks": "fgsm"}}, "valid list (got 'fgsm'); did you mean 'evaluate.attacks=[\"fgsm\"]'?"),
        ({"threat": "Linf"}, "threat: is a table of settings; there is threat.norm, threat.eps, threat.step_size"),
        ({"schedulers": "anl"}, "(got 'anl'); did you mean 'schedulers.anl={}'?"),
        ({"attack": {"steps": 3}}, "attack.name: is required"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr"),
        ({"optimizer": {"lr": "nan"}}, "finite"),
        ({"optimizer": {"schedule": "cosine(1)"}}, "optimizer.schedule: cannot read the schedule"),
        ({"optimizer": {"schedule": "drops(1, 100, 150)"}}, "epoch 215 of 300 is 215/300"),
        ({"optimizer": {"name": "lion"}}, "'sgd', 'adam' or 'adamw'"),
        ({"batch_size": 1}, "batch_size"),
        ({"data": {"validation": 1}}, "data.validation"),
        ({"threat": {"eps": 0}}, "threat.eps"),
        ({"evaluate": {"attacks": "fgsm"}}, "evaluate.attacks"),
        ({"seed": 2**63}, "seed"),
        ({"augments": {"flip": 3}}, "augments.flip"),
        ({"device": 3}, "device"),
    ],
)
def test_what_is_said(table: dict, word: str) -> None:
    assert any(word in said for said in problems(table)), problems(table)


def test_numbers_as_people_write_them() -> None:
    config = parse({"threat": {"eps": "8/255"}, "optimizer": {"lr": "1/10", "schedule": "drops(1, 0.5)"}})
    assert config.threat.eps == 8 / 255
    assert config.optimizer.lr == 0.1
    assert config.optimizer.schedule == "drops(1, 0.5)"


def test_the_empty_recipe_is_the_main_job() -> None:
    config = parse({})
    assert (config.data.name, config.loss.name, config.student.model) == ("digits", "mtard-anl", "small-cnn")
    assert parse(tomllib.loads(config.text())) == config


@pytest.mark.parametrize(
    ("table", "limit"),
    [
        ({"epochs": 10**9}, "1000000"),
        ({"batch_size": 10**9}, "1000000"),
        ({"grad_accumulation": 10**12}, "1000000"),
        ({"checkpoint": {"keep": 10**6}}, "1000"),
        ({"validate": {"steps": 10**6}}, "10000"),
        ({"evaluate": {"batch_size": 10**9}}, "1000000"),
        ({"evaluate": {"attacks": ["fgsm"] * 1000}}, "100 items"),
        ({"evaluate": {"curve": [0.1] * 1000}}, "100 items"),
        ({"data": {"workers": 10**6}}, "256"),
    ],
)
def test_every_count_has_a_limit(table: dict[str, Any], limit: str) -> None:
    with pytest.raises(ConfigError, match=limit):
        parse(table)

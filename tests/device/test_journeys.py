"""Whole runs on a device that is no CPU, from the configuration to the page's numbers; and runs that change it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import rkd
from rkd import hookimpl
from rkd.cli import cli
from rkd.testing import tiny_dataset

from .runs import assert_same

CLOCK = {"seconds", "started", "run"}
"""What differs between two runs that are the same."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A method with everything that has a state, on a few images in a file, with a run's student for teachers."""
    folder = tmp_path_factory.mktemp("journeys")
    data = tiny_dataset(36, classes=10)
    arrays: dict[str, Any] = {}
    for name, part in (("train", data.train), ("test", data.test)):
        arrays |= {f"x_{name}": part.images(torch.arange(len(part))).numpy(), f"y_{name}": part.labels.numpy()}
    np.savez(folder / "images.npz", **arrays)
    table = {
        "device": "cpu",
        "data": {"name": f"npz:{folder / 'images.npz'}", "validation": 0.2},
        "student": {"model": "small-cnn", "width": 4},
        "batch_size": 8,
        "epochs": 2,
        "engine": "plain",
        "validate": {"steps": 2},
        "evaluate": {"attacks": ["fgsm"], "checks": "quick", "engine": "plain"},
    }
    rkd.train(settings={**table, "loss": {"name": "ce"}, "epochs": 1}, out=folder / "teacher")
    return table | {
        "loss": {"name": "mtard-anl"},
        "attack": {"steps": 2},
        "teachers": [{"role": role, "reference": str(folder / "teacher")} for role in ("clean", "robust")],
        "extensions": {"ema": {}, "awp": {}},
        "optimizer": {"name": "adam"},
    }


@pytest.fixture(scope="module")
def expected(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on the CPU, in one go."""
    path = tmp_path_factory.mktemp("cpu") / "run"
    rkd.train(settings=settings, out=path)
    return path


class Stopping:
    """A reporter under whose eyes a training stops after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def message(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def doing(self, text: str) -> None: ...

    def cost(self, *what: Any) -> None: ...

    def training(self, title: str) -> Mapping[str, Any]:
        return {"stopping": self}

    def evaluating(self, title: str) -> Any:
        return lambda what, done, total: None

    @hookimpl
    def rkd_after_update(self, run: Any) -> None:
        self.steps -= 1

    @hookimpl
    def rkd_stop(self, run: Any) -> bool:
        return self.steps <= 0


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_clock(inner) for name, inner in value.items() if name not in CLOCK}
    return [without_clock(inner) for inner in value] if isinstance(value, list) else value


def assert_same_runs(found: Path, expected: Path) -> None:
    """Weights bit for bit, each epoch's record, and each number of the evaluation."""
    assert_same(rkd.load_student(found).state_dict(), rkd.load_student(expected).state_dict())
    for file in ("evaluation.json", "student.json"):
        one, other = (without_clock(json.loads((run / file).read_text())) for run in (found, expected))
        assert one == other
    one, other = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (found, expected))
    assert without_clock(one) == without_clock(other)


@pytest.mark.slow
def test_a_whole_run(settings: dict[str, Any], expected: Path, device: torch.device, tmp_path: Path) -> None:
    rkd.train(settings=settings | {"device": str(device)}, out=tmp_path / "run")
    assert_same_runs(tmp_path / "run", expected)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["hardware"]["device"] == str(device)


@pytest.mark.slow
@pytest.mark.parametrize("home", ["cpu", "elsewhere"])
@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=pytest.mark.slow)])  # within the first epoch, at its end
def test_a_run_goes_on_elsewhere(
    steps: int, home: str, settings: dict[str, Any], expected: Path, device: torch.device, tmp_path: Path
) -> None:
    first, second = ("cpu", str(device)) if home == "cpu" else (str(device), "cpu")
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        rkd.train(settings=settings | {"device": first}, out=run, reporter=Stopping(steps))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace(f'device = "{first}"', f'device = "{second}"'))
    result = CliRunner().invoke(
        cli, ["run", "--resume", str(run), "--accept-changes", "--no-report"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert f"device {first} -> {second}" in result.output
    assert_same_runs(run, expected)


@pytest.mark.slow
def test_rkd_eval(settings: dict[str, Any], expected: Path, device: torch.device) -> None:
    """The command line's evaluation, with what it can add."""
    teacher = settings["teachers"][0]["reference"]
    words = ["eval", expected, "--attack", "pgd", "--limit", "4", "--curve", "0.02,0.1", "--transfer", teacher,
             "--corruptions", "--set", "evaluate.options.pgd.steps=2", "--checks", "off", "--json"]  # fmt: skip

    def said(where: str) -> Any:
        result = CliRunner().invoke(cli, [*map(str, words), "--device", where], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return without_clock(json.loads(result.stdout))

    assert said(str(device)) == said("cpu")

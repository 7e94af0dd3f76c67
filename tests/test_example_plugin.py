"""The package in examples/rkd-hello: installed with pip, listed with its distribution, used by a run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "rkd-hello"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which the example is installed, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(EXAMPLE)], check=True, capture_output=True)
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "PYTHONPATH": str(target), "RKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def rkd(installed: dict[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rkd", *arguments]
    return subprocess.run(command, env=installed, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_list_plugins_shows_it_with_its_distribution(installed):
    done = rkd(installed, "list-plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = {(p["kind"], p["name"]): p for p in json.loads(done.stdout)["plugins"]}
    for kind, name in (("loss", "hello"), ("scheduler", "crescendo")):
        assert found[kind, name]["distribution"] == "rkd-hello"
        assert found[kind, name]["version"] == "0.1.0"


@pytest.mark.slow
def test_a_run_uses_it(installed, tmp_path):
    settings = ["--epochs", "1", "--student", "small-cnn", "--set", "student.width=4", "--set", "evaluate.limit=40"]
    teacher = '{reference = "small-cnn", role = "robust", train = {epochs = 1, attack = {steps = 1}}}'
    settings += ["--set", f"teachers=[{teacher}]", "--set", "attack.steps=1", "--set", "loss.T=2"]
    done = rkd(installed, "run", "--loss", "hello", *settings, "--name", "hello", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["config"]["loss"] == {"name": "hello", "T": 2.0}
    assert results["config"]["schedulers"] == {"crescendo": {"term": "robust", "top": 5.0}}
    last = json.loads((tmp_path / "runs" / "hello" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["weight.robust"] <= 5


def test_it_is_about_thirty_lines():
    code = (EXAMPLE / "rkd_hello.py").read_text().split('"""', 2)[2]
    lines = [line for line in code.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 40


def test_its_own_tests_pass(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    module = importlib.import_module("test_rkd_hello")
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()

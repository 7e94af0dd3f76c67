"""The packages in examples/: installed with pip, listed with their distributions, used by runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rkd.core.trainer import fit
from rkd.plugins.methods.adr import Adr
from rkd.plugins.methods.fair import FairArd
from rkd.plugins.methods.igdm import Igdm
from rkd.plugins.methods.peeraid import PeerAid
from rkd.plugins.schedulers.fair import Fair
from rkd.testing import OneStep, tiny_run

EXAMPLES = Path(__file__).parent.parent / "examples"
HELLO, FIELD = EXAMPLES / "rkd-hello", EXAMPLES / "rkd-field"
COMPONENTS = {
    "rkd-hello": {("loss", "hello"), ("scheduler", "crescendo")},
    "rkd-field": {
        ("loss", "field-adr"), ("loss", "field-fair-ard"), ("loss", "field-igdm"), ("loss", "field-peeraid"),
        ("scheduler", "field-fair"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which the examples are installed, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(HELLO), str(FIELD)], check=True, capture_output=True)
    cache = tmp_path_factory.mktemp("cache")
    path = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "RKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def rkd(installed: dict[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rkd", *arguments]
    return subprocess.run(command, env=installed, cwd=cwd, capture_output=True, text=True, check=False)


def trained(installed: dict[str, str], cwd: Path, name: str, *settings: str) -> dict:
    """The results of a run of one epoch with a teacher of one epoch."""
    small = ["--epochs", "1", "--student", "small-cnn", "--set", "student.width=4", "--set", "evaluate.limit=40"]
    small += ["--set", "attack.steps=1", "--name", name, "--json"]
    done = rkd(installed, "run", *settings, *small, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ROBUST = '{reference = "small-cnn", role = "robust", train = {epochs = 1, attack = {steps = 1}}}'


@pytest.mark.slow
@pytest.mark.parametrize("package", COMPONENTS)
def test_list_plugins_shows_them_with_their_distribution(package, installed):
    done = rkd(installed, "list-plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = [p for p in json.loads(done.stdout)["plugins"] if p["distribution"] == package]
    assert {(p["kind"], p["name"]) for p in found} == COMPONENTS[package]
    assert {p["version"] for p in found} == {"0.1.0"}


@pytest.mark.slow
def test_a_run_uses_it(installed, tmp_path):
    loss = ["--loss", "hello", "--set", "loss.T=2", "--set", f"teachers=[{ROBUST}]"]
    results = trained(installed, tmp_path, "hello", *loss)
    assert results["config"]["loss"] == {"name": "hello", "T": 2.0}
    assert results["config"]["schedulers"] == {"crescendo": {"term": "robust", "top": 5.0}}
    last = json.loads((tmp_path / "runs" / "hello" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["weight.robust"] <= 5


@pytest.mark.slow
def test_a_strangers_term_stands_beside_a_built_in_loss_and_its_scheduler(installed, tmp_path):
    loss = ["--loss", "field-fair-ard+field-igdm", "--set", f"teachers=[{ROBUST}]"]
    results = trained(installed, tmp_path, "sum", *loss, "--set", "loss.field-igdm.alpha=2")
    assert results["config"]["schedulers"] == {"field-fair": {"beta": 2.0}}
    last = json.loads((tmp_path / "runs" / "sum" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["weight.field-igdm"] <= 2 and last["loss.kd"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["field-adr", "field-peeraid"])
def test_a_run_uses_a_strangers_companion(loss, installed, tmp_path):
    results = trained(installed, tmp_path, loss, "--loss", loss)
    assert results["config"]["loss"]["name"] == loss


@pytest.mark.parametrize("file", [HELLO / "rkd_hello.py", *sorted((FIELD / "rkd_field").glob("[!_]*.py"))])
def test_they_are_short_and_import_the_public_door_alone(file):
    text = file.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) < 60
    assert [line.split()[1] for line in text.splitlines() if line.startswith("from rkd")] == ["rkd.plugin"]


@pytest.mark.parametrize(("module", "count"), [("test_rkd_hello", 2), ("test_rkd_field", 3)])
def test_their_own_tests_pass(module, count, monkeypatch):
    for folder in (HELLO, FIELD):
        monkeypatch.syspath_prepend(folder)
    tests = [test for name, test in vars(importlib.import_module(module)).items() if name.startswith("test_")]
    assert len(tests) == count
    for test in tests:
        test()


def test_the_field_computes_what_the_built_in_methods_do(monkeypatch):
    monkeypatch.syspath_prepend(FIELD)
    field = {name: importlib.import_module(f"rkd_field.{name}") for name in ("adr", "fair_ard", "igdm", "peeraid")}
    pairs = [
        (field["adr"].Adr(), Adr(), {}, {}),
        (field["igdm"].Igdm(3.0), Igdm(3.0), {}, {}),
        (field["peeraid"].PeerAid(), PeerAid(), {}, {}),
        (field["fair_ard"].FairArd(), FairArd(), {"fair": field["fair_ard"].Fair()}, {"fair": Fair()}),
    ]
    for theirs, ours, their_schedulers, our_schedulers in pairs:
        runs = [tiny_run(theirs, attack=OneStep(), schedulers=their_schedulers, epochs=3)]
        runs += [tiny_run(ours, attack=OneStep(), schedulers=our_schedulers, epochs=3)]
        for run in runs:
            fit(run)
        for a, b in zip(*(run.state.history for run in runs), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), type(ours).__name__
        for name, value in runs[1].state.knobs.items():
            assert torch.equal(value, runs[0].state.knobs[name])

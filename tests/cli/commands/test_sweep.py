"""`rkd sweep`, with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rkd.workflow.sweeps.sweep import begin, read_sweep

from ..conftest import TINY, Said, invoke

SWEEP = """
[set]
loss = "pgd-at"
epochs = 1
evaluate.attacks = ["fgsm", "pgd"]
student.width = 4
evaluate.limit = 50
attack.steps = 2
validate.limit = 50
[grid]
seed = "0..2"
"""


@pytest.fixture
def half_done(empty_folder: Path) -> Path:
    """A sweep of which one run is finished, one was killed in its evaluation, and one would fail."""
    Path("it.toml").write_text(SWEEP)
    folder = Path("runs/it")
    begin(read_sweep(Path("it.toml")), folder)
    for seed in (0, 1):
        said = invoke("run", "--loss", "pgd-at", *TINY, "--seed", seed, "--out", folder, "--name", f"seed={seed}")
        assert said.exit_code == 0, said.stderr
    for left in ("evaluation.json", "student.json", "student.safetensors"):
        (folder / "seed=1" / left).unlink()
    (folder / "seed=2").mkdir()
    return folder


@pytest.mark.slow
def test_a_sweep_goes_on_and_compares(half_done: Path) -> None:
    bare = invoke("sweep", half_done, "--dry-run", "--no-report")
    assert all(line.endswith("--no-report") for line in bare.stdout.splitlines()[1:])
    plan = invoke("sweep", half_done, "--dry-run")
    assert [line.split()[0] for line in plan.stdout.splitlines()] == ["finished", "begun", "new"]
    before = (half_done / "seed=0" / "evaluation.json").stat().st_mtime_ns
    said = invoke("sweep", half_done, "--json")
    assert said.exit_code == 2
    assert "1 of 3 runs failed" in said.stderr and "exists already" in said.stderr, "the others went on"
    assert "continuing after epoch 1 of 1" in (half_done / "seed=1.log").read_text()
    assert (half_done / "seed=0" / "evaluation.json").stat().st_mtime_ns == before
    (group,) = json.loads(said.stdout)["groups"]
    assert len(group["runs"]) == 2
    (half_done / "seed=2").rmdir()
    said = invoke("sweep", half_done)
    assert said.exit_code == 0, said.stderr
    assert "3 runs, 2 of them finished" in said.stderr
    row, size = [line for line in said.stdout.splitlines() if line.startswith("pgd-at small-cnn")]
    assert row.split()[2] == "3" and row.count("±") >= 4 and "±" not in size


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--grid", "loss"), "expected KEY=VALUE"),
        ((), "needs an axis"),
        (("a", "b", "seed=1"), "one recipe"),
        (("--grid", "seed=1,1"), "twice"),
        (("nosuch",), "there is no recipe 'nosuch'"),
        (("digits-rslad",), "needs an axis"),
        ((".",), ". is no folder of a sweep"),
        (("--grid", "loss=ard,tpyo"), "there is no loss 'tpyo'"),
        (("--grid", "loss=ard,tpyo seed=0..4"), "(in loss=tpyo_seed=0, loss=tpyo_seed=1, loss=tpyo_seed=2 and 2 more)"),
        (("--grid", "foo=1,2"), "foo"),
        (("--grid", "epochs=3,x"), "'x' is not a valid integer. (in epochs=x)"),
        (("--grid", "student.width=4,-1", "--set", "student=small-cnn"), "width = -1"),
        (("--grid", "attack.steps=1,many", "--set", "loss=pgd-at"), "steps"),
        (("--grid", "evaluate=fgsm,pgdd"), "there is no attack 'pgdd'"),
    ],
)
def test_mistakes(words: tuple[str, ...], what: str) -> None:
    said: Said = invoke("sweep", *words)
    assert said.exit_code == 2 and what in said.stderr
    assert not Path("runs").exists()


def test_that_many_runs_are_checked_is_told(rkd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred took ten seconds without a word."""
    monkeypatch.setattr("rkd.cli.terminal.SOON", 0.0)
    said = rkd("sweep", "seed=0..19", "--set", "loss=ce", "--dry-run")
    assert "checking the settings of 20 runs" in said.stderr
    assert said.stdout.count("--loss=ce") == 20

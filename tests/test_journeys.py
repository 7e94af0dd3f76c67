"""What a newcomer types from a page of the site, line after line in an empty folder, with smaller sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rkd.workflow.sweeps.jobs import LocalRuns

from .cli.conftest import invoke
from .test_commands import ROOT, commands, write_photos

pytestmark = pytest.mark.slow

SMALL = ["--set", "attack.steps=1", "--set", "validate.limit=20", "--set", "evaluate.limit=20",
         "--set", 'evaluate.attacks=["fgsm"]']  # fmt: skip
FEW = ["--checks", "off", "--limit", "10"]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Types a page's commands in an empty folder: words replaced by smaller ones, more words at the end of a command.
    Returns what each said on stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "cache"))

    def carry_out(self: LocalRuns, points: Sequence[Any]) -> dict[str, str]:
        for point in points:  # in this process, which has loaded torch
            said = invoke(*self.sweep.words(point, self.folder, self.words))
            assert said.exit_code == 0, said.stderr
        return {}

    monkeypatch.setattr(LocalRuns, "carry_out", carry_out)

    def page(name: str, smaller: Mapping[str, str], more: Mapping[str, Sequence[str]]) -> list[str]:
        answers = []
        for words in commands(ROOT / "docs" / name):
            words = [*(smaller.get(word, word) for word in words), *more.get(words[0], ())]
            said = invoke(*words)
            assert said.exit_code == 0, f"rkd {' '.join(words)}\n{said.stderr}"
            answers.append(said.stdout)
        return answers

    return page


def test_comparing_methods(typed: Callable[..., list[str]]) -> None:
    """A sweep, its table over seeds, the page with the trade-off, and saved evaluations side by side."""
    smaller = {
        "loss=pgd-at,trades,ard,rslad": "loss=pgd-at,trades", "seed=0..4": "seed=0..1", "epochs=20": "epochs=1",
        "runs/study/loss=rslad_seed=0": "runs/study/loss=trades_seed=0",
        "pgd-sat": "fgsm", "autoattack": "fgsm", "pgd-sat,square": "fgsm",
    }  # fmt: skip
    more = {"sweep": [*SMALL, "--set", "student.width=4", "--set", "batch_size=256"], "eval": FEW}
    plan, _, table, *_, saved, _ = typed("howto/compare.md", smaller, more)
    assert [line.split()[0] for line in plan.splitlines()] == ["new"] * 4
    rows = [line.split() for line in table.splitlines() if line.startswith(("pgd-at small-cnn", "trades small-cnn"))]
    assert all(row[2] == "2" and row.count("±") > 1 for row in rows[:2]), table
    assert "<svg" in Path("study.html").read_text()
    assert "loss=pgd-at_seed=0" in saved and "loss=trades_seed=0" in saved


def test_a_robust_net_on_a_phone(typed: Callable[..., list[str]]) -> None:
    """Own photos, a robust teacher, a student of timm's, its file of eight bits, and what of the robustness is left."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_photos(Path("PHOTOS"), 20)
    smaller = {
        "data.size=64": "data.size=32", "resnet18": "resnet8", "60": "1", "autoattack": "fgsm",
        "timm:mobilenetv3_small_100": "timm:test_efficientnet",
    }  # fmt: skip
    more = {"run": [*SMALL, "--batch-size", "6"], "export": ["--set", "attack.square.queries=5"], "eval": FEW}
    answers = typed("howto/deploy.md", smaller, more)
    rows = json.loads(Path("runs/phone/exports/onnx/export.json").read_text())["rows"]
    assert len(rows) == 3 and rows[2]["files"] == ["model.int8.onnx"]
    assert "worst case" in answers[4]


def test_a_plugin(typed: Callable[..., list[str]]) -> None:
    """A package of one's own, the checks of what it provides, and a plan of a run with it."""
    answers = typed("plugins.md", {}, {})
    assert (Path("rkd-mine") / "pyproject.toml").is_file()
    assert answers[1].split() == ["ok", "loss", "mine"]
    words = ["run", "--plugin", "rkd-mine/rkd_mine.py", "--loss", "mine"]  # where it is not installed
    assert f"rkd {' '.join(words)}" in " ".join((ROOT / "docs" / "plugins.md").read_text().split())
    assert 'name = "mine"' in invoke(*words, "--dry-run").stdout

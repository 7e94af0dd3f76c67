"""What a newcomer types from a page of the site, line after line in an empty folder: only sizes and epochs are smaller."""

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

SMALL = {"attack.steps": 2, "validate.limit": 20, "evaluate.limit": 20, "evaluate.attacks": '["fgsm"]'}


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Types a page's commands in an empty folder; what each said on stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "cache"))

    def carry_out(self: LocalRuns, points: Sequence[Any]) -> dict[str, str]:
        for point in points:  # in this process, which has loaded torch
            said = invoke(*self.sweep.words(point, self.folder, self.words))
            assert said.exit_code == 0, said.stderr
        return {}

    monkeypatch.setattr(LocalRuns, "carry_out", carry_out)

    def page(name: str, smaller: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
        answers = []
        for words in commands(ROOT / "docs" / name):
            words = [smaller.get(word, word) for word in words]
            sets = [text for key, value in settings.get(words[0], {}).items() for text in ("--set", f"{key}={value}")]
            said = invoke(*words, *sets)
            assert said.exit_code == 0, f"rkd {' '.join([*words, *sets])}\n{said.stderr}"
            answers.append(said.stdout)
        return answers

    return page


def test_comparing_methods(typed: Callable[..., list[str]]) -> None:
    """A sweep, its table over seeds, and the page with the trade-off."""
    smaller = {"loss=pgd-at,trades,ard,rslad": "loss=pgd-at,trades", "seed=0..4": "seed=0..1", "epochs=20": "epochs=1"}
    smaller |= {
        "runs/study/loss=rslad_seed=0": "runs/study/loss=trades_seed=0",
        "pgd-sat": "fgsm",
        "autoattack": "fgsm",
        "pgd-sat,square": "fgsm",
        "1000": "20",
    }
    answers = typed(
        "howto/compare.md", smaller, {"sweep": SMALL | {"student.width": 4}, "eval": {"evaluate.limit": 20}}
    )
    plan, _, table, *_ = answers
    assert [line.split()[0] for line in plan.splitlines()] == ["new"] * 4
    rows = [line.split() for line in table.splitlines() if line.startswith(("pgd-at small-cnn", "trades small-cnn"))]
    assert len(rows) == 2 and all(row[2] == "2" and row.count("±") > 1 for row in rows), table
    assert "<svg" in Path("study.html").read_text()


def test_a_robust_net_on_a_phone(typed: Callable[..., list[str]]) -> None:
    """Own photos, a robust teacher, a student of timm's, its file of eight bits, and what of the robustness is left."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_photos(Path("PHOTOS"), 20)
    smaller = {"data.size=64": "data.size=32", "resnet18": "resnet8", "60": "1", "1000": "20", "autoattack": "fgsm"}
    smaller |= {"timm:mobilenetv3_small_100": "timm:test_efficientnet"}
    settings = {"run": SMALL | {"batch_size": 6}, "export": {"attack.square.queries": 5}}
    answers = typed("howto/deploy.md", smaller, settings)
    rows = json.loads(Path("runs/phone/exports/onnx/export.json").read_text())["rows"]
    assert len(rows) == 3 and rows[2]["files"] == ["model.int8.onnx"]
    assert "worst case" in answers[4]

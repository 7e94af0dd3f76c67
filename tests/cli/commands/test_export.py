"""`rkd export` on the terminal."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import TINY

QUICK = ("--attack", "fgsm,square", "--limit", "30", "--set", "attack.square.queries=5")

FORMAT = '''
"""A format of a plugin file."""
import copy
from dataclasses import dataclass
import torch
from rkd.plugin import Artefact, hookimpl

@dataclass
class Weights:
    """Weights alone."""
    def __call__(self, student, folder):
        torch.save(student.net.arch.state_dict(), folder / "weights.pt")
        return Artefact(copy.deepcopy(student.net), ("weights.pt",), "torch", "torch.load('weights.pt')")

@hookimpl
def rkd_exporters():
    return {"weights": Weights}
'''


def test_a_format_of_a_plugin(rkd: Callable, finished: tuple, tmp_path: Path) -> None:
    run, _ = finished
    plugin = tmp_path / "weights_format.py"
    plugin.write_text(FORMAT)
    said = rkd("export", run, "--to", "weights", *QUICK, "--out", tmp_path / "out", "--plugin", plugin)
    assert said.exit_code == 0, said.stderr
    assert "weights: clean on all 359 test images of digits, attacked on 30" in said.stdout
    assert all(word in said.stdout for word in ("float", "exported", "straight through", "worst case", "MMACs"))
    assert f"wrote {tmp_path / 'out'}" in said.stdout
    said = rkd("export", run, "--to", "weights", "--attack", "none", "--out", tmp_path / "two", "--json",
               "--plugin", plugin)  # fmt: skip
    assert said.json["rows"][1]["files"] == ["weights.pt"] and said.json["folder"] == str(tmp_path / "two")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("nowhere", "--to", "torch"), "nowhere is not a run's folder"),
        (("RUN",), "Missing option '--to'"),
        (("RUN", "--to", "tflite"), "there is no exporter 'tflite'"),
        (("RUN", "--to", "torch", "--set", "loss.x=1"), "--set loss: here there is export.KEY=VALUE"),
    ],
)
def test_mistakes(words: tuple, problem: str, rkd: Callable, finished: tuple) -> None:
    said = rkd("export", *(finished[0] if word == "RUN" else word for word in words))
    assert said.exit_code == 2 and problem in said.stderr and "Traceback" not in said.stderr


@pytest.mark.slow
def test_from_a_training_to_ten_lines_of_onnxruntime(rkd: Callable, capsys: pytest.CaptureFixture) -> None:
    """docs/export.md as it stands: train, export, run the file; the table says what is left."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    journey = page[page.index("## From a training") :]
    commands, script = re.findall(r"```(?:python)?\n(.*?)```", journey, re.DOTALL)[:2]
    train, export = (shlex.split(line)[1:] for line in commands.splitlines())
    assert rkd(*train, "--loss", "pgd-at", *TINY).exit_code == 0
    said = rkd(*export, *QUICK)
    assert said.exit_code == 0, said.stderr
    assert all(row in said.stdout for row in ("float", "exported", "int8")) and "straight through" in said.stdout
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 10 and "rkd" not in script and "torch" not in script
    capsys.readouterr()
    exec(script, {})
    seen, true = (re.findall(r"\d", line) for line in capsys.readouterr().out.splitlines())
    assert len(seen) == len(true) == 8 and sum(map(str.__eq__, seen, true)) >= 4
    page = rkd("report", "small")
    assert page.exit_code == 0 and "model.int8.onnx" not in page.stderr
    assert 'id="exports"' in Path("runs/small/report.html").read_text()

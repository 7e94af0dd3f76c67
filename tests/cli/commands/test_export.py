"""`rkd export` on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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

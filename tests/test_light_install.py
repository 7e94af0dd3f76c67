"""Without matplotlib and scikit-learn: runs, evaluations and tables work; pages and digits say what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LIGHT = """
import json, sys
sys.modules |= dict.fromkeys(("matplotlib", "sklearn"))  # whoever imports one is told that it is not there
import torch
from tests.cli.conftest import invoke
torch.set_num_threads(1)
said = [invoke(*words) for words in json.loads(sys.argv[1])]
print(json.dumps([[one.exit_code, one.stdout, one.stderr] for one in said]))
"""
RUN = ("run", "--dataset", "npz:own.npz", "--loss", "pgd-at", "--epochs", "1", "--set", "student.width=4",
       "--name", "a", "--set", "attack.steps=1", "--evaluate", "fgsm", "--set", "validate.select=last")  # fmt: skip


@pytest.mark.slow
def test_without_matplotlib_and_scikit_learn(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    images, labels = numbers.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images[:30], y_test=labels[:30])
    commands = [
        RUN,
        ("eval", "runs/a", "--attack", "fgsm", "--save", "saved", "--checks", "off"),
        ("compare", "runs/a", "saved"),
        ("report", "runs/a"),
        ("run", "--dry-run", "--loss", "pgd-at"),
    ]
    root = Path(__file__).parent.parent
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(commands)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run, evaluated, compared, report, digits = json.loads(done.stdout.split("\n")[-2])
    missing = "a page with pictures needs matplotlib: pip install 'rkd-toolkit[report]'"
    assert run[0] == 0 and missing in " ".join(run[2].split()), run[2]
    assert evaluated[0] == 0 and compared[0] == 0 and "fgsm" in compared[1].lower(), evaluated[2] + compared[2]
    assert report[0] == 2 and missing in " ".join(report[2].split())
    words = "the data set digits needs sklearn: pip install 'rkd-toolkit[digits]'"
    assert digits[0] == 2 and words in " ".join(digits[2].split())

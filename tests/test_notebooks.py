"""The notebooks run from top to bottom, on small settings, and are kept without output.

They are run where the extra `notebooks` is installed: by a job of its own in CI.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMALL = {"EPOCHS": "1", "TEACHER": '"small-cnn"', "TEACHER_EPOCHS": "1", "STRONGEST": '"apgd-ce"', "ATTACKED": "6"}
"""Settings of each notebook's first cell."""
NEEDS = {"3-a-robust-net-on-a-phone": ("onnx", "onnxscript", "onnxruntime")}


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_without_output(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for package in ("ipykernel", *NEEDS.get(path.stem, ())):
        pytest.importorskip(package)
    bin = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([bin, os.environ["PATH"]]))  # for `!rkd`
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in SMALL.items():
        first.source = re.sub(rf"(?m)^{name} = \S+", f"{name} = {value}", first.source)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "error" not in said.lower(), said
    assert (tmp_path / "runs").is_dir()

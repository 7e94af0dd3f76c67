"""benchmarks/gpu.py and benchmarks/speedrun.py want a GPU; they run to the end on the pretend device and on the CPU."""

from __future__ import annotations

import importlib
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from ..pretend_device import host_waits

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
LONG = {"autoattack", "epoch", "first-run", "steps"}
PARTS = ["correctness", "waiting", *sorted(LONG)]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return importlib.import_module(name)


@pytest.mark.parametrize("part", [pytest.param(p, marks=[pytest.mark.slow] if p in LONG else []) for p in PARTS])
def test_every_part(
    part: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    gpu = script("gpu", monkeypatch)
    monkeypatch.setattr(script("gpu_checks", monkeypatch), "host_waits", lambda where: host_waits())
    words = ["--device", str(device), "--small", "--here", "--parts", part, "--minutes", "60", "--out", str(tmp_path)]
    assert gpu.main(words) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["device"] == str(device) and list(found["parts"]) == [part]
    for row in found["parts"][part]:
        assert "found" in row and row["found"].get("fine", True), row
    table = (tmp_path / "gpu.md").read_text()
    assert table in capsys.readouterr().out + "\n" and f"| {part} |" in table


def test_what_fails_is_noted_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = script("gpu", monkeypatch)

    def broken() -> dict[str, float]:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setitem(gpu.PARTS, "steps", lambda place: {"one": broken, "two": lambda: {"seconds": 1.0}})
    monkeypatch.setitem(gpu.PARTS, "epoch", lambda place: 1 / 0)
    gpu.main(["--device", "cpu", "--here", "--parts", "steps", "epoch", "--out", str(tmp_path)])
    table = (tmp_path / "gpu.md").read_text()
    assert "| steps | one | failed: RuntimeError: no such kernel |\n| steps | two | seconds 1 |" in table
    assert "| epoch | all of it | failed: ZeroDivisionError" in table


def test_no_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = script("gpu", monkeypatch)
    monkeypatch.setitem(gpu.PARTS, "steps", lambda place: {"one": dict, "two": dict})
    gpu.main(["--device", "cpu", "--here", "--parts", "steps", "--minutes", "0", "--out", str(tmp_path)])
    assert "| steps | two | skipped: no time left |" in (tmp_path / "gpu.md").read_text()
    (tmp_path / "steps.jsonl").write_text('{"cases": ["one", "two"], "machine": {}}\n{"case": "one", "found": {}}\n')
    rows, _ = gpu.read(tmp_path / "steps.jsonl")
    assert rows[1] == {"case": "two", "skipped": "the part was stopped"}


@pytest.mark.parametrize("where", ["cpu", "pretend"])
def test_speedrun(
    where: str, device: torch.device, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """From a folder on the CPU, from an archive on the pretend device."""
    draw = np.random.default_rng(0)
    images = tmp_path / "images"
    for part, count in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            (images / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / part / name / f"{number}.png")
    given = images
    if where == "pretend":
        given = tmp_path / "images.tar.gz"
        with tarfile.open(given, "w:gz") as archive:
            archive.add(images, "images")
    speedrun = script("speedrun", monkeypatch)
    words = [str(given), "--device", str(device) if where == "pretend" else "cpu", "--model", "small-cnn",
             "--batch", "8", "--epochs", "1", "--samples", "4", "--attack", "fgsm",
             "--out", str(tmp_path / "out")]  # fmt: skip
    speedrun.main(words)
    (path,) = (tmp_path / "out").glob("*/speedrun.json")
    found = json.loads(path.read_text())
    assert found["epochs"] == 1 and found["samples"] == 4 and 0 <= found["robust"] <= found["clean"] <= 1
    assert "| minutes | epochs |" in capsys.readouterr().out

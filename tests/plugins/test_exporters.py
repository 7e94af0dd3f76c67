"""Every format: what comes back from the files is the net, for any batch, and runs from the lines on its card."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import Refused, RkdError
from rkd.core.types import ThreatModel
from rkd.export.formats import Artefact, Exported
from rkd.export.measure import difference
from rkd.nets.net import Net
from rkd.nets.resize import Resize
from rkd.registry.catalog import Catalog
from rkd.storage.card import Card

OLD_TIMM = tuple(map(int, version("timm").split(".")[:3])) < (1, 0, 16)


def student(catalog: Catalog, model: str, shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> Exported:
    """A net whose batch norms have moved, as a trained one's have."""
    arch = catalog.create("model", model, options)(shape, 3)
    mean, std = [0.3] * shape[0], [0.2] * shape[0]
    net = Net(arch, mean, std).train()
    for _ in range(3):
        net(torch.rand(8, *shape))
    card = Card(model, options, shape, ("a", "b|c", "d"), mean, std, ThreatModel())
    return Exported(net.eval().requires_grad_(False), card, torch.rand(40, *shape))


def exported(catalog: Catalog, name: str, what: Exported, folder: Path, **options: Any) -> tuple[Artefact, float]:
    artefact = catalog.create("exporter", name, options)(what, folder)
    assert all((folder / file).stat().st_size for file in artefact.files)
    return artefact, difference(artefact.net, what.net, torch.rand(5, *what.card.shape))


def run_usage(artefact: Artefact, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[str]:
    """What the lines of the card print, in the folder that holds the files."""
    monkeypatch.chdir(folder)
    assert "rkd" not in artefact.usage and len(artefact.usage.splitlines()) <= 10
    exec(artefact.usage, {})
    return str(capsys.readouterr().out).split()


@pytest.mark.slow
def test_onnx(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    what = student(catalog, "small-cnn", (3, 9, 7), width=2)
    artefact, apart = exported(catalog, "onnx", what, tmp_path)
    assert apart < 1e-5
    assert json.loads(artefact.net.metadata["classes"]) == ["a", "b|c", "d"]  # type: ignore[operator, union-attr, arg-type]
    assert run_usage(artefact, tmp_path, monkeypatch, capsys)
    rounded, apart = exported(catalog, "onnx", what, tmp_path, int8=True)
    assert 1e-5 < apart < 0.3
    assert rounded.files == ("model.int8.onnx",) and "40 training images" in rounded.about[0]
    assert run_usage(rounded, tmp_path, monkeypatch, capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.int8.onnx"}
    # Scales follow the calibration: made for dark images, they clip light ones.
    _, clipped = exported(catalog, "onnx", Exported(what.net, what.card, what.calibration * 0.01), tmp_path, int8=True)
    assert clipped > 2 * apart


@pytest.mark.slow
@pytest.mark.skipif(OLD_TIMM, reason="timm reads no folders before 1.0.16")
@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:test_vit2"])
def test_timm(model: str, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    what = student(catalog, model)
    artefact, apart = exported(catalog, "timm", what, tmp_path)
    assert apart < 1e-5
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 3 and config["label_names"] == ["a", "b|c", "d"]
    assert config["pretrained_cfg"]["mean"] == [0.3] and config["pretrained_cfg"]["input_size"][0] == 1
    resized = any(isinstance(hook, Resize) for hook in what.net.arch._forward_pre_hooks.values())
    assert ("interpolate" in artefact.usage) == resized
    assert run_usage(artefact, tmp_path, monkeypatch, capsys)


def test_timm_takes_its_own_alone(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"small-cnn is no net of timm's.*--to hf, torch or onnx"):
        exported(catalog, "timm", student(catalog, "small-cnn", width=2), tmp_path)


@pytest.mark.slow
def test_hugging_face(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Of another net than timm's: config.json beside what the format torch writes."""
    artefact, apart = exported(catalog, "hf", student(catalog, "small-cnn", width=2), tmp_path)
    assert apart < 1e-5
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "a", "1": "b|c", "2": "d"}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.pt2", "model.safetensors"}
    assert run_usage(artefact, tmp_path, monkeypatch, capsys)


def test_a_missing_package_is_named(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RkdError, match=r"the format onnx needs onnx.*pip install 'rkd-toolkit\[onnx\]'"):
        exported(catalog, "onnx", student(catalog, "small-cnn", width=2), tmp_path)


@pytest.mark.slow
def test_executorch(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("executorch.runtime")
    what = student(catalog, "small-cnn", width=4)
    artefact, apart = exported(catalog, "executorch", what, tmp_path)
    assert apart < 1e-5
    assert len(run_usage(artefact, tmp_path, monkeypatch, capsys)) == 1
    rounded, apart = exported(catalog, "executorch", what, tmp_path, int8=True)
    assert 1e-5 < apart < 0.3 and rounded.files == ("model.int8.pte",)


def test_executorch_is_named_where_it_is_missing(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("executorch", "executorch.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RkdError, match=r"the format executorch needs executorch.*'rkd-toolkit\[executorch\]'"):
        exported(catalog, "executorch", student(catalog, "small-cnn", width=2), tmp_path)

"""ONNX files of any maker as nets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import WeightsError
from rkd.evaluation.transfer import identity
from rkd.export.onnx import OnnxNet

pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")


def made(
    path: Path, batch: int | str, sides: tuple[Any, ...] = (1, 2, 3), factor: float = 1.0, inputs: int = 1
) -> Path:
    """Images times `factor`, flattened."""
    from onnx import TensorProto, helper

    names = ["images", "more"][:inputs]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["images", "factor"], ["scaled"]),
         helper.make_node("Flatten", ["scaled"], ["logits"], axis=1)],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *sides]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("batch", ["batch", 1, 2, 4])
def test_any_batch(batch: int | str, tmp_path: Path) -> None:
    net = OnnxNet(made(tmp_path / "net.onnx", batch))
    for count in (1, 2, 3, 5):
        x = torch.rand(count, 1, 2, 3, requires_grad=True)
        logits = net(x)
        assert torch.equal(logits, x.detach().flatten(1)) and not logits.requires_grad


def test_two_files_are_two_nets(tmp_path: Path) -> None:
    nets = [OnnxNet(made(tmp_path / f"{factor}.onnx", "b", factor=factor)) for factor in (1.0, 2.0)]
    assert identity(nets[0]) != identity(nets[1])


def test_what_it_takes(tmp_path: Path) -> None:
    net = OnnxNet(made(tmp_path / "net.onnx", "b", (1, 2, "width")))
    assert net.takes((1, 2, 9)) and not net.takes((3, 2, 9)) and net.metadata == {}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(WeightsError, match=r"onnxruntime cannot read .*text\.onnx"):
        OnnxNet(tmp_path / "text.onnx")
    with pytest.raises(WeightsError, match=r"expected one input of float32 images \(B, C, H, W\), it has images"):
        OnnxNet(made(tmp_path / "flat.onnx", "b", (6,)))
    with pytest.raises(WeightsError, match="expected one input"):
        OnnxNet(made(tmp_path / "two.onnx", "b", inputs=2))

"""`rkd eval FILE.onnx`: files of rkd and of others, without gradients and with a run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError, Refused, RkdError
from rkd.export.onnx import NORMALIZES_INSIDE
from rkd.registry.catalog import Catalog
from rkd.workflow.evaluate import EvalRequest
from rkd.workflow.exporting.onnx_file import evaluate_onnx
from rkd.workflow.nets import load_run

from .conftest import Told

pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")

DIGITS = [str(digit) for digit in range(10)]


def linear(path: Path, weight: torch.Tensor, bias: torch.Tensor, **metadata: str) -> Path:
    """A file of one layer: logits of 1x8x8 images."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"], axis=1),
         helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1)],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.numpy(), "weight"), numpy_helper.from_array(bias.numpy(), "bias")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def weights(catalog: Catalog, linear_run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear student of a run, its normalisation folded in."""
    net = load_run(linear_run, catalog).net
    logits = net(torch.cat([torch.zeros(1, 64), torch.eye(64)]).view(65, 1, 8, 8))
    return (logits[1:] - logits[0]).T.contiguous(), logits[0].contiguous()


def quick(path: Path, **more: Any) -> EvalRequest:
    return EvalRequest(str(path), **{"limit": 60, "checks": "off", **more})


def test_without_gradients(weights: Any, tmp_path: Path, catalog: Catalog, cache: Path) -> None:
    told = Told()
    path = linear(tmp_path / "net.onnx", *weights, input=NORMALIZES_INSIDE, classes='["9", "8"]')
    settings = {"attack": {"square": {"queries": 5}}}
    summary = evaluate_onnx(
        quick(path, dataset="digits", settings=settings, save=str(tmp_path / "saved")), catalog, told
    )
    assert set(summary["attacks"]) == {"square"} and summary["clean"] > 0.6
    assert (summary["model"], summary["parameters"]) == ("onnx", 650)
    assert any("its normalisation is inside, as it says" in text for text in told.messages)
    assert (tmp_path / "saved" / "evaluation.json").is_file()


def test_with_the_gradients_of_its_run(weights: Any, tmp_path: Path, catalog: Catalog, linear_run: Path) -> None:
    """The file is the run's net, so that it falls as the net does."""
    from rkd.workflow.evaluate import evaluate_request

    path = linear(tmp_path / "net.onnx", *weights, input=NORMALIZES_INSIDE)
    settings = {"evaluate": {"options": {"square": {"queries": 5}}}}
    summary = evaluate_onnx(quick(path, source=str(linear_run), settings=settings), catalog)
    own = evaluate_request(quick(linear_run), catalog)
    assert list(summary["attacks"]) == ["pgd-sat", "square", "transferred"]
    assert summary["clean"] == own["clean"]
    assert summary["attacks"]["pgd-sat"] == pytest.approx(own["attacks"]["pgd-sat"], abs=0.02)
    assert summary["attacks"]["transferred"] < summary["clean"]


def test_outputs_in_another_order(weights: Any, tmp_path: Path, catalog: Catalog) -> None:
    order = [3, 1, 2, 0, 4, 5, 6, 7, 9, 8]
    weight, bias = (tensor[order].contiguous() for tensor in weights)
    right = evaluate_onnx(
        quick(linear(tmp_path / "right.onnx", *weights, input=NORMALIZES_INSIDE), dataset="digits", attacks=[]), catalog
    )["clean"]
    names = str(order).replace("[", '["').replace("]", '"]').replace(", ", '", "')
    named = linear(tmp_path / "named.onnx", weight, bias, input=NORMALIZES_INSIDE, classes=names)
    told = Told()
    assert evaluate_onnx(quick(named, dataset="digits", attacks=[]), catalog, told)["clean"] == right
    assert any("in the order of the data's classes, by name" in text for text in told.messages)
    unnamed = linear(tmp_path / "unnamed.onnx", weight, bias, input=NORMALIZES_INSIDE)
    places = ",".join(map(str, order))
    assert evaluate_onnx(quick(unnamed, dataset="digits", attacks=[], classes=places), catalog)["clean"] == right
    assert evaluate_onnx(quick(unnamed, dataset="digits", attacks=[]), catalog)["clean"] < right


def test_another_makers_normalisation_is_settled(
    weights: Any, tmp_path: Path, catalog: Catalog, linear_run: Path
) -> None:
    """A file without the normalisation, which does not say so: as a weights file."""
    card = load_run(linear_run, catalog).card
    weight, bias = weights
    inner = linear(tmp_path / "inner.onnx", weight * card.std[0], bias + weight.sum(1) * card.mean[0])
    told = Told()
    outer = linear(tmp_path / "outer.onnx", *weights, input=NORMALIZES_INSIDE)
    expected = evaluate_onnx(quick(outer, dataset="digits", attacks=[]), catalog)["clean"]
    found = evaluate_onnx(quick(inner, dataset="digits", attacks=[], normalize="data"), catalog, told)
    assert found["clean"] == expected
    assert found["normalization"]["choice"] == "data"


@pytest.mark.parametrize(
    ("more", "error", "problem"),
    [
        ({"dataset": "digits", "attacks": ["fgsm"]}, RkdError, "gives no gradients, which fgsm needs: .*--source RUN"),
        ({"dataset": "digits", "classes": "0,1"}, Refused, r"expected \(2, 10\)"),
        ({"dataset": "digits", "normalize": "both"}, ConfigError, "--normalize"),
        ({"source": "nowhere"}, RkdError, "nowhere is not a run's folder"),
    ],
)
def test_mistakes(
    more: dict[str, Any], error: type, problem: str, weights: Any, tmp_path: Path, catalog: Catalog
) -> None:
    with pytest.raises(error, match=problem):
        evaluate_onnx(quick(linear(tmp_path / "net.onnx", *weights), **more), catalog)

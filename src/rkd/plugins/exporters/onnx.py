"""The student as an ONNX file, with its normalisation inside and for any number of images; rounded to eight bits too.

The float file is made by torch's exporter of today (`torch.onnx.export(dynamo=True)`). The one of eight bits is made of
it by onnxruntime's static quantisation: QDQ nodes, signed bytes, one scale for each output channel of a weight and one
for each activation, which are the extremes seen on training images. torchao and PT2E would round the graph of
torch.export instead; their way to ONNX is not a kept one, and onnxruntime's is the one that its kernels are made for.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from rkd.plugin import (
    NORMALIZES_INSIDE,
    Artefact,
    Exported,
    OnnxNet,
    check_range,
    hookimpl,
    optional,
    quiet,
    translated,
)

USAGE = """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
images = np.random.rand(4, {shape}).astype("float32")  # yours: in [0, 1], any number at once
(logits,) = session.run(["logits"], {{"images": images}})  # normalisation inside
print(logits.argmax(1))"""


@dataclass
class Onnx:
    """An ONNX file (model.onnx, or of eight bits model.int8.onnx), for onnxruntime and whatever reads ONNX.

    `batch`: training images that go into the calibration at once.
    """

    int8: bool = False
    batch: int = 32

    def __post_init__(self) -> None:
        check_range("batch", self.batch, 1)

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        file = "model.int8.onnx" if self.int8 else "model.onnx"
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "float.onnx" if self.int8 else folder / file
            _write(student, path)
            if self.int8:
                _quantise(path, folder / file, student.calibration.split(self.batch))
        net = OnnxNet(folder / file)
        usage = USAGE.format(file=file, shape=", ".join(map(str, student.card.shape)))
        rounded = (f"Calibrated on {len(student.calibration):,} training images.",) if self.int8 else ()
        return Artefact(net, (file,), net.runtime, usage, rounded)


def _write(student: Exported, path: Path) -> None:
    """The float model. Raises RkdError without the packages, Refused for a net with an operator that ONNX lacks."""
    onnx = optional("onnx", "onnx", "the format onnx")
    optional("onnxscript", "onnx", "the format onnx")
    import torch

    program = student.program()
    made = translated(
        lambda: torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]),
        student.card.model, "torch.onnx",
    )  # fmt: skip
    model = made.model_proto
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    facts = {"classes": list(student.card.classes), "input": NORMALIZES_INSIDE}
    onnx.helper.set_model_props(model, {key: v if isinstance(v, str) else json.dumps(v) for key, v in facts.items()})
    model.producer_name, model.doc_string = "rkd", f"{student.card.model}, exported by rkd"
    onnx.save(model, path)


def _quantise(source: Path, target: Path, batches: tuple[Tensor, ...]) -> None:
    optional("onnxruntime", "onnx", "the format onnx")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"images": batch.numpy()}

    ready = source.with_name("ready.onnx")
    with quiet():
        # Symbolic inference needs sympy's help for no gain here: shapes but for the batch are known.
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(target), Images(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


@hookimpl
def rkd_exporters():
    return {"onnx": Onnx}

"""The student as a program of ExecuTorch, for phones and small boards, on its XNNPACK kernels.

One image at a time, as a device sees them. Eight bits are PT2E's: the graph of torch.export with the scales that
XNNPACK's quantiser puts into it, signed bytes, one scale for each output channel of a weight.

ExecuTorch's wheels name no version of torch, but their libraries are built for one: where these do not load, the
message says so. (1.5.1 runs with torch 2.14.)
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rkd.plugin import Artefact, Exported, hookimpl, optional, translated

EXTRA = "executorch", "the format executorch"

USAGE = """import torch
from executorch.runtime import Runtime

method = Runtime.get().load_program("{file}").load_method("forward")
image = torch.rand(1, {shape})  # yours: one float32 image in [0, 1]; normalisation inside
(logits,) = method.execute([image])
print(logits.argmax(1))"""


@dataclass
class ExecuTorch:
    """A program of ExecuTorch on XNNPACK (model.pte, or of eight bits model.int8.pte), for phones and small boards."""

    int8: bool = False

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        runtime = optional("executorch.runtime", *EXTRA)
        partitioner = optional("executorch.backends.xnnpack.partition.xnnpack_partitioner", *EXTRA)
        exir = optional("executorch.exir", *EXTRA)
        program = student.program(batch=1)
        if self.int8:
            program = _quantised(program, student.calibration)

        def lowered() -> bytes:
            partitioners = [partitioner.XnnpackPartitioner()]
            return exir.to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch().buffer

        file = "model.int8.pte" if self.int8 else "model.pte"
        (folder / file).write_bytes(translated(lowered, student.card.model, "executorch"))
        rounded = (f"Calibrated on {len(student.calibration):,} training images.",) if self.int8 else ()
        return Artefact(
            ProgramNet(runtime, folder / file),
            (file,),
            f"executorch {version('executorch')}, XNNPACK",
            USAGE.format(file=file, shape=", ".join(map(str, student.card.shape))),
            ("One image at a time.", *rounded),
        )


class ProgramNet(nn.Module):
    """The program as its runtime runs it, image by image."""

    def __init__(self, runtime: Any, path: Path) -> None:
        super().__init__()
        self._method = runtime.Runtime.get().load_program(path).load_method("forward")

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._method.execute([image.detach().contiguous()])[0].clone() for image in x.split(1)])


def _quantised(program: torch.export.ExportedProgram, images: Tensor) -> torch.export.ExportedProgram:
    quantizer = optional("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", *EXTRA)
    pt2e = optional("torchao.quantization.pt2e.quantize_pt2e", *EXTRA)
    rules = quantizer.XNNPACKQuantizer().set_global(quantizer.get_symmetric_quantization_config(is_per_channel=True))
    prepared = pt2e.prepare_pt2e(program.module(), rules)
    with torch.no_grad():
        for image in images.split(1):
            prepared(image)
    return torch.export.export(pt2e.convert_pt2e(prepared), (images[:1],), strict=False)


@hookimpl
def rkd_exporters():
    return {"executorch": ExecuTorch}

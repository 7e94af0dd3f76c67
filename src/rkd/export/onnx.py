"""A net in an ONNX file, run by onnxruntime on the CPU."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import RkdError, WeightsError
from ..core.types import Shape
from ..storage.optional import optional

NORMALIZES_INSIDE = "images in [0, 1]; normalisation inside"
"""What a file of rkd's says of its `input`, in its metadata."""


class OnnxNet(nn.Module):
    """Images `(B, C, H, W)` to logits `(B, K)`, without gradients. What the file wants in front of it (a normalisation)
    is left to the caller. A file made for a fixed batch gets its images in such parts.

    Raises RkdError without onnxruntime, WeightsError for a file that it cannot take, or whose inputs and outputs are
    not one batch of images and one of logits.
    """

    digest: Tensor
    """Of the file: what tells two nets apart that have no weights of torch's."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        runtime = optional("onnxruntime", "onnx", "an ONNX file")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.path = str(path)
        try:
            self._session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise WeightsError(f"onnxruntime cannot read {path}: {str(error).splitlines()[0]}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            got = ", ".join(f"{item.name} {item.type}{item.shape}" for item in inputs)
            raise WeightsError(f"{path}: expected one input of float32 images (B, C, H, W), it has {got}")
        self._input, self._output = inputs[0].name, outputs[0].name
        batch, *shape = inputs[0].shape
        self._batch = batch if isinstance(batch, int) else None
        self._shape = shape
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self.runtime = f"onnxruntime {runtime.__version__}, CPU"

    def extra_repr(self) -> str:
        return self.path

    @property
    def metadata(self) -> dict[str, str]:
        """What its maker wrote into it."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def parameters_in_file(self) -> int:
        """The numbers that the file holds, scales and constants among them. Raises RkdError without onnx."""
        graph = optional("onnx", "onnx", "an ONNX file").load(self.path, load_external_data=False).graph
        return sum(math.prod(tensor.dims) for tensor in graph.initializer)

    def takes(self, shape: Shape) -> bool:
        """Whether images of `shape` fit what the file says of its input."""
        return all(not isinstance(own, int) or own == side for own, side in zip(self._shape, shape, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        images = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
        if self._batch is None:
            logits = self._run(images)
        else:
            rest = -len(images) % self._batch
            padded = np.concatenate([images, np.zeros((rest, *images.shape[1:]), np.float32)])
            parts = [self._run(padded[at : at + self._batch]) for at in range(0, len(padded), self._batch)]
            logits = np.concatenate(parts)[: len(images)]
        return torch.from_numpy(logits).to(x.device)

    def _run(self, images: np.ndarray) -> Any:
        try:
            return self._session.run([self._output], {self._input: images})[0]
        except Exception as error:
            raise RkdError(f"onnxruntime cannot run {self.path}: {str(error).splitlines()[0]}") from None

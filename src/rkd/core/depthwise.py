"""Depthwise convolutions with a stride under reduced precision on a CPU.

In bfloat16 torch's gradient of such a layer by its input takes many times as long as its forward, and as in float32
(torch 2.15, AVX512-BF16; `python benchmarks/engine.py` times both). So these layers stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class StridedInFloat32(TorchFunctionMode):
    """Inside, a grouped convolution with a stride on a CPU runs in float32; its outputs have autocast's dtype again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv2d or not _slow(*args, **kwargs):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found: Tensor = func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})
        return found.to(torch.get_autocast_dtype("cpu"))


def _slow(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, ...] = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> bool:  # fmt: skip
    strided = stride > 1 if isinstance(stride, int) else max(stride) > 1
    return groups > 1 and strided and input.device.type == "cpu"


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value

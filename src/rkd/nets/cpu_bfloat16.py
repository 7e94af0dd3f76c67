"""What torch computes slowly in reduced precision on a CPU, computed in another way.

- Depthwise convolutions with a stride: in bfloat16 torch's gradient of such a layer by its input takes many times as
  long as its forward, and as in float32. So these layers stay in float32.
- ReLU on its way back in bfloat16: it only asks which outputs are positive, and takes a third of the time where it asks
  that of their bits, read as integers. The same bits come out.

(torch 2.15, AVX512-BF16; `python benchmarks/engine.py` times both.)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def packs() -> bool:
    """Whether oneDNN convolves packed weights in bfloat16 on this processor: not without AVX512 or its like."""
    known: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return known


class OnCpu(TorchFunctionMode):
    """For a forward under autocast on a CPU. Outputs have autocast's dtype."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and _slow(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                found: Tensor = func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})
            return found.to(torch.get_autocast_dtype("cpu"))
        if func in (F.relu, torch.relu) and len(args) == 1 and not any(kwargs.values()) and _goes_back(args[0]):
            return _Relu.apply(args[0])
        return func(*args, **kwargs)


def _slow(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, ...] = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> bool:  # fmt: skip
    strided = stride > 1 if isinstance(stride, int) else max(stride) > 1
    return groups > 1 and strided and input.device.type == "cpu"


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _goes_back(x: Any) -> bool:
    if type(x) is not Tensor or x.dtype is not torch.bfloat16 or x.device.type != "cpu":
        return False  # what is traced has a type of its own
    return x.requires_grad and torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        y = x.relu()
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context: Any, g: Tensor) -> Tensor:
        (y,) = context.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            found: Tensor = torch.ops.aten.threshold_backward(g, y, 0)
            return found
        return relu_backward(g, y)


def relu_backward(g: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """The gradient `g` of ReLU's outputs `y`, both bfloat16, where these are positive; into `out` if it is given."""
    bits, seen = g.view(torch.int16), y.view(torch.int16)
    if out is None:
        found: Tensor = torch.ops.aten.threshold_backward(bits, seen, 0)
    else:
        found = torch.ops.aten.threshold_backward.grad_input(bits, seen, 0, grad_input=out.view(torch.int16))
    return found.view(torch.bfloat16)

"""ReLU's outputs are computed again on the way back, instead of being kept until then.

Of `convolution -> batch norm -> ReLU -> convolution` autograd keeps the norm's inputs and ReLU's outputs, which are as
large. The second follow from the first, element by element: y = max(0, x * scale + shift). So only x is kept, and y is
made once more when the backward comes to the layers that took it. They share it; ReLU, the last of them, lets it go.

Behind a residual's sum, y = max(0, norm + skip), the skip has to be there as well: another norm, or what an earlier
ReLU gave, made again for it too or, if that followed a sum itself, kept. So of a chain of blocks every second ReLU
keeps its outputs, and none has to go back further than one block.

It is made by the kernels that made it first, so each bit is the same, and with it each gradient. The price is one more
pass over x for each y. This is done for:

- A training's forward on a CPU, in float32 or under autocast. On a GPU it was never tried, and the net runs as it is.
- Norms that torch's own kernel computes with the batch's statistics: not those of several processes together.
- ReLU, ReLU6 and Hardtanh, in place or not, of a norm's output, or of its sum with a second one's or with a ReLU's.
- Convolutions, linear layers, products and max pooling that take y. Whatever else needs y keeps it, as ever.

Not where other hooks on saved tensors are at work (`torch.utils.checkpoint` has some), nor in what functorch or a
compiler traces: there everything is kept as torch does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .cpu_bfloat16 import relu_again_

LEAST = 2**18
"""Bytes of an output from which on it is not kept: for less, the bookkeeping would take longer than the pass."""

SUMS = {torch.add, Tensor.add, Tensor.add_}
RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh}
USERS = {F.conv1d, F.conv2d, F.conv3d, F.linear, torch.max_pool2d, torch.mul, Tensor.mul}
"""What keeps its inputs, and no outputs that anyone could change."""


def recomputing(net: nn.Module, x: Tensor) -> AbstractContextManager[Any]:
    """For the forward of `net` on `x`: what keeps less, if this forward is part of a training."""
    if x.device.type != "cpu" or not net.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    # A search freezes the weights, and goes back at once: it is never what takes the most memory.
    if not _free() or not any(weight.requires_grad for weight in net.parameters()):
        return nullcontext()
    return Recompute()


class Recompute(TorchFunctionMode):
    """For a forward in training. To be entered last: it has to be the first that sees what the net calls."""

    def __init__(self) -> None:
        super().__init__()
        self._norms: Any = WeakTensorKeyDictionary()
        """Outputs of norms: their version, and the norm."""
        self._sums: Any = WeakTensorKeyDictionary()
        """Sums of a norm's outputs and a skip's: their version, and how to make them again."""
        self._known: Any = WeakTensorKeyDictionary()
        """Outputs of ReLU: their version, and how to make them again."""
        self._kept: Any = WeakTensorKeyDictionary()
        """Outputs of ReLU that stay: their version, and that they do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a part of the net that its author compiles
            return func(*args, **kwargs)
        if func is F.batch_norm:
            found = func(*args, **kwargs)
            if (norm := _norm(found, *args, **kwargs)) is not None:
                self._norms[found] = found._version, norm
            return found
        if func in SUMS and len(args) == 2 and not kwargs and (total := self._sum(*args)) is not None:
            found = func(*args)
            self._sums[found] = found._version, total
            return found
        if func in RELUS and args:
            source = _current(self._norms, args[0]) or _current(self._sums, args[0])
            if source is not None and _free():
                return self._relu(source, func, args, kwargs)
            found = func(*args, **kwargs)
            self._kept[found] = found._version, True
            return found
        if func in USERS:
            known = [(x, again) for x in args[:2] if (again := _current(self._known, x)) is not None]
            if known and _free():
                found, packed = _watched(func, args, kwargs)
                for kept in packed:
                    for x, again in known:
                        if kept.holds(x):
                            kept.forget(again)
                return found
        return func(*args, **kwargs)

    def _sum(self, one: Any, two: Any) -> Sum | None:
        """The sum of the two, if one is a norm's outputs and the other can be had again."""
        for a, b in ((one, two), (two, one)):
            norm = _current(self._norms, a)
            if norm is None or type(b) is not Tensor or (b.shape, b.stride(), b.dtype) != norm.kind:
                continue
            beside = _current(self._norms, b) or _current(self._known, b)
            if beside is None and _current(self._kept, b):
                beside = Still(b)
            if beside is not None and not (isinstance(beside, Again) and beside.chained):
                return Sum(norm, beside)
        return None

    def _relu(self, source: Norm | Sum, func: Any, args: Any, kwargs: Any) -> Tensor:
        low, high = _limits(func, *args, **kwargs)
        again = Again(source, low, high)
        found, packed = _watched(func, args, kwargs)
        for kept in packed:
            # It keeps its inputs or its outputs, to see where the gradient goes through: the outputs show it as well.
            if kept.tensor.shape == found.shape and kept.tensor.dtype == found.dtype:
                kept.forget(again, last=True)
        if (found.shape, found.stride(), found.dtype) == source.kind:
            self._known[found] = found._version, again
        return found


class Norm:
    """A batch norm's forward: what it took, and how it changed it."""

    def __init__(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        self.x, self.mean, self.scale, self.bias = x, mean, scale, bias
        self.kind = x.shape, x.stride(), x.dtype
        self._version = x._version

    def again(self) -> Tensor:
        """The same outputs, bit for bit."""
        if self.x._version != self._version:
            raise _modified(self.x, self._version)
        # In eval mode the kernel takes 1 / sqrt(variance + eps), here 1, times the weight, here the two's product.
        one = torch.ones_like(self.mean)
        return torch.native_batch_norm(self.x, self.scale, self.bias, self.mean, one, False, 0.0, 0.0)[0]


class Still:
    """A tensor that is kept anyway."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor.detach(), tensor._version

    def again(self) -> Tensor:
        if self._tensor._version != self._version:
            raise _modified(self._tensor, self._version)
        return self._tensor


class Sum:
    """A norm's outputs and what a skip adds to them."""

    def __init__(self, norm: Norm, beside: Norm | Again | Still) -> None:
        self.norm, self.beside, self.kind = norm, beside, norm.kind

    def again(self) -> Tensor:
        """The same sum, bit for bit."""
        return self.norm.again().add_(self.beside.again())


class Again:
    """ReLU's outputs: made when they are asked for, and held until the last who needs them has come."""

    def __init__(self, source: Norm | Sum, low: float, high: float | None) -> None:
        self.chained = isinstance(source, Sum)
        self._source, self._low, self._high = source, low, high
        self._made: Tensor | None = None

    @torch.no_grad()
    def again(self, last: bool = False) -> Tensor:
        found = self._made
        if found is None:
            found = self._source.again()
            if self._high is not None:
                found = F.hardtanh(found, self._low, self._high, inplace=True)
            else:
                found = relu_again_(found) if found.dtype is torch.bfloat16 else found.relu_()
        self._made = None if last else found
        return found


class Kept:
    """What autograd keeps: a tensor, or how to make it again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._version = tensor._version
        self._again: Again | None = None
        self._last = False

    def holds(self, x: Tensor) -> bool:
        mine = self.tensor
        same = (mine.shape, mine.stride(), mine.dtype) == (x.shape, x.stride(), x.dtype)
        return same and mine.data_ptr() == x.data_ptr()

    def forget(self, again: Again, last: bool = False) -> None:
        self._again, self._last = again, last
        self.tensor = self.tensor.new_empty(0)

    def get(self) -> Tensor:
        if self._again is not None:
            return self._again.again(self._last)
        if self.tensor._version != self._version:  # torch looks at this only where there are no hooks
            raise _modified(self.tensor, self._version)
        return self.tensor


def _watched(func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, list[Kept]]:
    """What `func` returns, and what autograd keeps of it."""
    packed: list[Kept] = []

    def pack(tensor: Tensor) -> Kept:
        packed.append(Kept(tensor))
        return packed[-1]

    with saved_tensors_hooks(pack, Kept.get):
        return func(*args, **kwargs), packed


def _norm(
    found: Any, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Norm | None:  # fmt: skip
    """The norm that made `found`, if it can be done again."""
    if not training or type(found) is not Tensor or found.nbytes < LEAST or not _free():
        return None
    node: Any = found.grad_fn
    if type(node).__name__ != "NativeBatchNormBackward0" or found.stride() != input.stride():
        return None  # another kernel, another device, one that is traced, or none that goes back
    with torch.no_grad():
        mean, scale = node._saved_result1.detach(), node._saved_result2.detach()
        if weight is not None:
            scale = scale * weight
        # Copies, since torch lets a bias move before the backward; a weight that moved is the norm's own to refuse.
        bias = None if bias is None else bias.detach().clone()
    if scale.dtype is not mean.dtype or mean.dtype not in (torch.float32, torch.float64):
        return None  # what the kernel rounds on its way would be rounded here
    return Norm(input.detach(), mean, scale, bias)


def _limits(
    func: Any, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> tuple[float, float | None]:
    """Between what `func` lets numbers through. None: there is no upper end."""
    if func is F.hardtanh:
        return min_val, max_val
    return 0.0, 6.0 if func is F.relu6 else None


def _current(known: Any, x: Any) -> Any:
    """What is known of `x`, if it is still what it was."""
    if type(x) is not Tensor or x not in known:
        return None
    version, what = known[x]
    return what if x._version == version else None


def _free() -> bool:
    """Whether nobody else has a say in what autograd keeps."""
    autograd: Any = torch._C._autograd
    try:
        return autograd._saved_tensors_hooks_is_enabled() and autograd._top_saved_tensors_default_hooks(True) is None
    except (AttributeError, TypeError):  # torch's own business, which other versions may arrange otherwise
        return False


def _modified(x: Tensor, version: int) -> RuntimeError:
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{x.dtype} {list(x.shape)} is at version {x._version}; expected version {version} instead"
    )

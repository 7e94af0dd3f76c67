"""How a copy of a net runs, in which layout and precision, and whether it is the same function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.attack import Patches
from ..core.errors import Refused
from ..core.types import View
from ..nets.cpu_bfloat16 import packs
from ..nets.memory_format import channels_last
from ..nets.net import Net, autocast_of
from .copy import Twin
from .ending import Ending
from .fold import put
from .fused import Fused, fuse
from .tape import Tape, taped
from .tape_windows import TapeWindows

Logits = Callable[[Tensor], Tensor]
"""Images `(B, C, H, W)` to logits `(B, K)`, float32."""

MICRO_BATCH = 32
"""Images that a CPU takes at once: their activations stay in the processor's caches."""

SAME_LOGITS, SAME_GRADIENT = 1e-4, 1e-3
"""How far a copy in float32 may be off: of logits as a share of the largest, of input gradients as a share of their
length, on the median image, since on some a ReLU turns over."""
NEAR_LOGITS = 0.05
"""The same of the logits of a copy in bfloat16."""


@dataclass(frozen=True)
class Backend:
    """What is done to a copy besides folding. `dtype`: float32, bfloat16, or `bfloat16 inside`: all but the layers at
    both ends, so that neither what is small in the images nor what is small in the logits is lost."""

    fused: bool = False
    channels_last: bool = False
    compiled: bool = False
    dtype: str = "float32"


FORCED = {
    "folded": Backend(), "channels-last": Backend(channels_last=True), "fused": Backend(fused=True),
    "compiled": Backend(channels_last=True, compiled=True),
}  # fmt: skip
"""What can be asked for by name."""


def rule(name: str, net: nn.Module, device: torch.device, low: bool = False) -> Backend:
    """The backend for `net` on `device`. `low`: in reduced precision; a net under autocast to bfloat16 is so anyway."""
    half = autocast_of(net) is torch.bfloat16
    dtype = "bfloat16 inside" if low else "bfloat16" if half else "float32"
    if name in FORCED:
        forced = FORCED[name]
        return Backend(forced.fused, forced.channels_last, forced.compiled, dtype)
    if device.type == "cpu" and (packs() if half or low else torch.backends.mkldnn.is_available()):
        return Backend(fused=True, dtype=dtype)
    return Backend(channels_last=half, dtype=dtype)


class FastNet:
    """A net as it runs under attack. This one is the net itself."""

    name = "plain"
    tape: Tape | None = None

    def __init__(self, net: nn.Module, logits: Logits, shape: torch.Size) -> None:
        self.net, self.logits, self.shape = net, logits, shape

    def current(self, net: nn.Module) -> bool:
        """Whether this is still made of the modules of `net`."""
        return net is self.net

    def refresh(self) -> None:
        """Take over the weights of the net. They must not move during an attack."""

    def release(self) -> None:
        """Give back what only an attack needs, until `refresh`."""

    def patches(self, x: Tensor) -> Patches:
        return Patches(self.logits, x)


class FastCopy(FastNet):
    """A frozen copy. Raises whatever a module raises that cannot be copied or read."""

    def __init__(self, backend: Backend, net: nn.Module, view: View | None, x: Tensor) -> None:
        self.twin = Twin(net, x[:2], view)
        half, fused = backend.dtype != "float32", False
        self.layers: list[Fused | Ending] = []
        arch, mean, std = parts(self.twin.net)
        run: nn.Module = arch
        normalised = (x[:2] - mean) / std
        if half:
            arch, normalised = arch.to(torch.bfloat16), normalised.to(torch.bfloat16)
        if backend.fused:
            self.twin.refresh()
            graph, self.layers = fuse(arch, channels_last(normalised))
            self.tape = taped(graph)
            run, fused = self.tape or graph, bool(self.layers)
        inside = backend.dtype == "bfloat16 inside" and self.tape is not None and self.tape.keep_ends(torch.bfloat16)
        if half and not fused:
            run = _depthwise_in_float32(arch)
        seen = torch.bfloat16 if half and not inside else torch.float32
        last = fused or backend.channels_last
        self.run = Run(run, mean, std, seen, last, MICRO_BATCH if x.device.type == "cpu" else None)
        words = {
            "folded": bool(self.twin.pairs), "bfloat16 inside": inside, "bfloat16": half and not inside,
            "fused": fused, "channels last": last and not fused, "compiled": backend.compiled,
        }  # fmt: skip
        self.name = ", ".join(word for word, there in words.items() if there) or "plain"
        self.refresh()
        logits: Logits = torch.compile(self.run, dynamic=False) if backend.compiled else self.run
        super().__init__(net, logits, x.shape[1:])

    def current(self, net: nn.Module) -> bool:
        return net is self.net and self.twin.current()

    def refresh(self) -> None:
        self.twin.refresh()
        for layer in self.layers:
            layer.take()

    def release(self) -> None:
        for layer in self.layers:
            if isinstance(layer, Fused):
                layer.take()

    def patches(self, x: Tensor) -> Patches:
        if self.tape is None or x.device.type != "cpu":
            return super().patches(x)
        return TapeWindows(self.logits, x, self.tape, self.run.prepared, MICRO_BATCH)


class Run(nn.Module):
    """Images to logits through `net`, which takes them normalised, in `dtype` and with channels last in memory.

    A batch of more than `micro_batch` images goes through in parts, and so does its gradient: autograd goes back
    through the last part first.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Tensor, std: Tensor, dtype: torch.dtype, last: bool, micro_batch: int | None
    ) -> None:
        super().__init__()
        self.net, self.dtype, self.last, self.micro_batch = net.eval(), dtype, last, micro_batch
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        if last:
            self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepared(x)
        if self.micro_batch is None or len(x) <= self.micro_batch:
            return self.net(x).float()
        count = -(-len(x) // self.micro_batch)
        return torch.cat([self.net(part).float() for part in x.tensor_split(count)])

    def prepared(self, x: Tensor) -> Tensor:
        """What the net takes of images."""
        x = (x - self.mean) / self.std  # in float32: images have more than eight bits
        return (_ChannelsLast.apply(x) if self.last else x).to(self.dtype)


class _ChannelsLast(torch.autograd.Function):
    """Channels last in memory; the gradient has the usual layout again."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return channels_last(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def make(
    backend: Backend, net: nn.Module, view: View | None, plain: Logits, x: Tensor, tell: Callable[[str], None]
) -> FastNet:
    """The copy of `net` that `backend` describes, if it is the same function on the images `x`; else the net itself.

    `plain`: the net as `view` sees it, in eval mode and with frozen weights.
    """
    itself = FastNet(net, plain, x.shape[1:])
    with torch.inference_mode(False):
        try:
            expected = gradient(plain, x)
            copy = FastCopy(backend, net, view, x)
            off = relative_error(copy.logits, x, expected, exact=backend.dtype == "float32")
        except Refused:  # no gradient to be had
            return itself
        except Exception as error:  # whatever a stranger's module does when it is copied: it runs as it is
            tell(f"engine: the net runs as it is: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return itself
    if copy.name == "plain":
        return itself
    if off > 1:
        tell(f"engine: {copy.name} is off by {off:.1g} times what rounding explains; the net runs as it is")
        return itself
    tell(f"engine: {copy.name}")
    return copy


def parts(net: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """The architecture with what it normalises by: in reduced precision that has to stay in front, in float32."""
    if isinstance(net, Net):
        return net.arch, net.mean.clone(), net.std.clone()
    one = torch.ones(1)
    device = next((p.device for p in net.parameters()), one.device)
    return net, torch.zeros(1, device=device), one.to(device)


def gradient(net: Logits, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(B, K)` of the images `x (B, C, H, W)`, and the gradient by them of a number made of the logits."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        if not logits.requires_grad:
            return logits, torch.zeros_like(x)
        (found,) = torch.autograd.grad(logits.float().logsumexp(1).sum(), x)
    return logits.detach(), found


def relative_error(net: Logits, x: Tensor, expected: tuple[Tensor, Tensor], exact: bool = True) -> float:
    """How far `net` is off what `gradient` gave for another, as a share of what may be: at most 1 is alike.

    `exact`: to float32's rounding; otherwise to bfloat16's, and of gradients only that they are finite.
    """
    wanted, slope = expected
    logits, other = gradient(net, x)
    if logits.shape != wanted.shape or not bool(logits.isfinite().all() & other.isfinite().all()):
        return float("inf")
    error = float((logits - wanted).abs().max() / wanted.abs().max().clamp_(min=1e-6))
    if not exact:
        return error / NEAR_LOGITS
    size = slope.flatten(1).norm(dim=1).clamp_(min=torch.finfo(slope.dtype).tiny)
    return max(error / SAME_LOGITS, float(((other - slope).flatten(1).norm(dim=1) / size).median()) / SAME_GRADIENT)


def _depthwise_in_float32(arch: nn.Module) -> nn.Module:
    """Depthwise convolutions go back to float32 on a CPU, where torch takes much longer over them in bfloat16."""
    for name, module in list(arch.named_modules()):
        if type(module) is nn.Conv2d and module.groups > 1 and name and module.weight.device.type == "cpu":
            put(arch, name, _InFloat32(module))
    return arch


class _InFloat32(nn.Module):
    """One layer of a bfloat16 net in float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float()).to(torch.bfloat16)

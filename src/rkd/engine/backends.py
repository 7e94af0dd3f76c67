"""How a copy of a net runs, in which layout and precision, and whether it is the same function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.attack import Patches
from ..core.errors import Refused
from ..core.types import View
from ..nets.cpu_bfloat16 import packs
from ..nets.memory_format import channels_last
from ..nets.net import Net, autocast_of, micro_batches
from ..nets.resize import Resize
from .copy import FrozenCopy, is_plain, put
from .fusion import FusedGraph
from .incremental import TapePatches
from .onednn import FusedConv
from .tape import Tape, taped

Logits = Callable[[Tensor], Tensor]
"""Images `(B, C, H, W)` to logits `(B, K)`, float32."""

MICRO_BATCH, MICRO_NUMBERS = 32, 1 << 19
"""Images that a CPU takes at once, so that their activations stay in the processor's caches; more of them where the
largest activation of all has no more numbers than the second says (as that of 32 images in a ResNet-20)."""

CHECKED = 16
"""Images on which a copy is compared with its net."""

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
"""What can be asked for by name: `--engine NAME`, `registry/config.py:TrainEngine`."""


def rule(name: str, net: nn.Module, device: torch.device, low: bool = False) -> Backend:
    """The backend for `net` on `device`. `low`: in reduced precision; a net under autocast to bfloat16 is so anyway."""
    half = autocast_of(net) is torch.bfloat16
    dtype = "bfloat16 inside" if low else "bfloat16" if half else "float32"
    if name in FORCED:
        return replace(FORCED[name], dtype=dtype)
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
        self.copy = FrozenCopy(net, x[:2], view)
        self.layers: list[FusedConv] = []
        low = backend.dtype != "float32"
        arch, mean, std, resize = parts(self.copy.net)
        micro_batch = MICRO_BATCH if x.device.type == "cpu" else None
        self.run = Run(arch, mean, std, resize, torch.bfloat16 if low else torch.float32, micro_batch)
        if low:
            arch.to(torch.bfloat16)
        if backend.fused:
            self.copy.refresh()
            graph = FusedGraph(arch, channels_last(self.run.prepared(x[:2])))
            self.layers = graph.layers if self.copy.folded or graph.gains else []
            if self.layers:
                if micro_batch:
                    self.run.micro_batch = max(micro_batch, MICRO_NUMBERS // graph.widest)
                self.tape = taped(graph.net)
                self.run.net = self.tape or graph.net
        inside = backend.dtype == "bfloat16 inside" and self.tape is not None and self.tape.keep_ends(torch.bfloat16)
        if inside:
            self.run.dtype = torch.float32
        elif low and not self.layers:
            _depthwise_to_float32(arch)
        if self.layers or backend.channels_last:
            self.run.use_channels_last()
        words = {
            "folded": bool(self.copy.folded), "bfloat16 inside": inside, "bfloat16": low and not inside,
            "fused": bool(self.layers), "channels last": backend.channels_last, "compiled": backend.compiled,
        }  # fmt: skip
        self.name = ", ".join(word for word, there in words.items() if there) or "plain"
        self.refresh()
        logits: Logits = torch.compile(self.run, dynamic=False) if backend.compiled else self.run
        super().__init__(net, logits, x.shape[1:])

    def current(self, net: nn.Module) -> bool:
        return net is self.net and self.copy.current()

    def refresh(self) -> None:
        self.copy.refresh()
        for layer in self.layers:
            layer.reset()

    def release(self) -> None:
        for layer in self.layers:
            layer.reset()

    def patches(self, x: Tensor) -> Patches:
        if self.tape is None or self.run.resize:
            return super().patches(x)
        return TapePatches(self.logits, x, self.tape, self.run.prepared, self.run.micro_batch or MICRO_BATCH)


class Run(nn.Module):
    """Images to float32 logits through `net`, which takes them normalised, resized and in `dtype`.

    A batch of more than `micro_batch` images goes through in parts, and so does its gradient: autograd goes back
    through the last part first.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Tensor, std: Tensor, resize: Sequence[Resize], dtype: torch.dtype,
        micro_batch: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.resize, self.dtype, self.micro_batch = net, resize, dtype, micro_batch
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.channels_last = False

    def use_channels_last(self) -> None:
        self.channels_last = True
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepared(x)
        if self.micro_batch is None or len(x) <= self.micro_batch:
            return self.net(x).float()
        return torch.cat([self.net(x[rows]).float() for rows in micro_batches(len(x), self.micro_batch)])

    def prepared(self, x: Tensor) -> Tensor:
        """What the net takes of images."""
        x = (x - self.mean) / self.std  # in float32: images have more than eight bits
        for resize in self.resize:
            x = resize.images(x)
        return (_ChannelsLast.apply(x) if self.channels_last else x).to(self.dtype)


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
            x = torch.cat([x, 1 - x]).detach() if len(x) == 1 else x.detach()
            expected = gradient(plain, x)
            if not bool(expected[1].any()):  # no gradient to be had, and a copy might have one
                return itself
            copy = FastCopy(backend, net, view, x)
            micro_batch, copy.run.micro_batch = copy.run.micro_batch, -(-len(x) // 2)  # a net may mix its batch
            off = relative_error(copy.logits, x, expected, exact=backend.dtype == "float32")
            copy.run.micro_batch = micro_batch
        except Refused:  # torch cannot take a gradient
            return itself
        except Exception as error:  # whatever a module of others raises when it is copied or traced
            if backend.fused:
                return make(replace(backend, fused=False, channels_last=True), net, view, plain, x, tell)
            tell(f"engine: the net runs as it is: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return itself
    if copy.name == "plain":
        return itself
    if off > 1:
        tell(f"engine: {copy.name} is off by {off:.1g} times what rounding explains; the net runs as it is")
        return itself
    tell(f"engine: {copy.name}")
    return copy


def copyable(net: nn.Module) -> bool:
    """Whether no hook runs in the net but resizing of its images: others may do anything, now and not later."""
    first = net.arch if isinstance(net, Net) else net
    return all(is_plain(module) or (module is first and _only_resized(module)) for module in net.modules())


def _only_resized(net: nn.Module) -> bool:
    hooks = list(net._forward_pre_hooks.values())
    net_without = not (net._forward_hooks or net._backward_hooks or net._backward_pre_hooks)
    return net_without and all(isinstance(hook, Resize) for hook in hooks)


def parts(net: nn.Module) -> tuple[nn.Module, Tensor, Tensor, list[Resize]]:
    """The architecture of a copy without the hooks that resize its images, the mean and deviation that it is normalised
    by, and these hooks."""
    arch, mean, std = (net.arch, net.mean, net.std) if isinstance(net, Net) else (net, torch.zeros(1), torch.ones(1))
    resize = [hook for hook in arch._forward_pre_hooks.values() if isinstance(hook, Resize)]
    arch._forward_pre_hooks.clear()
    device = next((p.device for p in net.parameters()), mean.device)
    return arch, mean.to(device, copy=True), std.to(device, copy=True), resize


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


def _depthwise_to_float32(arch: nn.Module) -> None:
    """Depthwise convolutions go back to float32 on a CPU, where torch takes much longer over them in bfloat16."""
    for name, module in list(arch.named_modules()):
        if type(module) is nn.Conv2d and module.groups > 1 and name and module.weight.device.type == "cpu":
            put(arch, name, _InFloat32(module))


class _InFloat32(nn.Module):
    """One layer of a bfloat16 net in float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float()).to(torch.bfloat16)

"""Ways to run a net while it is attacked: frozen copies of it, each the same function.

With batch norms folded (`fold`), with channels last in memory, with convolutions fused (`fused`), in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.types import RoughPart, View
from ..core.windows import Windows
from ..nets.cpu_bfloat16 import packs
from ..nets.memory_format import channels_last
from ..nets.net import Net
from .compiled import Compiled
from .copy import Twin
from .ending import Ending
from .fold import put
from .fused import Fused, fuse
from .graphs import Graphed
from .pieces import InPieces
from .tape import Tape, taped


@dataclass(frozen=True)
class Choice:
    """The way chosen. `net`: images `(B, C, H, W)` float32 to logits float32; `speedup` over the net as it is."""

    name: str
    net: nn.Module
    speedup: float = 1.0
    exact: bool = True
    """float32 throughout: the same function up to rounding."""
    windows: Callable[[Tensor], Windows] | None = None
    """Where a changed window of the images is computed faster alone: how to follow images."""
    refresh: Callable[[], None] = lambda: None
    """Takes over the weights of the net that was copied. They must not move during a search."""
    release: Callable[[], None] = lambda: None
    """Gives back what only a search needs, until `refresh`."""
    current: Callable[[], bool] = lambda: True
    """Whether the net that was copied is still made of the same modules."""
    way: str = "plain"
    """What `made` calls it."""
    seconds: float = 0.0
    """That the gradient of one image takes, as measured."""
    arch: nn.Module | None = None
    """What `net` computes of normalised images, layer by layer, before layers were fused. None: `net` can be read."""
    rough: Mapping[RoughPart, Choice] = field(default_factory=dict)
    """Faster ways in reduced precision, for searches that can do with it, by what of them is in it."""
    tape: Tape | None = None
    """The same as a tape of fused layers, if it is one."""

    def __str__(self) -> str:
        found = self.name if self.speedup == 1 else f"{self.name}, {self.speedup:.1f} times as fast"
        return "; ".join([found, *(f"{part}: {way}" for part, way in self.rough.items())])


Precision = Literal["float32", "bfloat16", "bfloat16 inside"]
"""What a copy computes in. `bfloat16 inside`: the layers at both ends in float32 where they are known, so that neither
what is small in the images nor what is small in the logits is lost."""


def ways(device: torch.device, precision: Precision = "float32") -> list[str]:
    """What `made` can make on this device."""
    kinds = ["", ", channels last"]
    if device.type == "cpu" and (torch.backends.mkldnn.is_available() if precision == "float32" else packs()):
        kinds.append(", fused")
    return [f"folded{'' if precision == 'float32' else ', ' + precision}{kind}" for kind in kinds]


def made(way: str, net: nn.Module, x: Tensor, view: View | None = None) -> Choice:
    """The copy of `net` that is called so; without its parts that are the net's own. `x (B, ...)`: what it takes.

    Raises whatever a module raises that cannot be copied or read.
    """
    twin = Twin(net, x[:2], view)
    half = "bfloat16" in way
    names = ["folded"] if twin.pairs else []
    layers: list[Fused | Ending] = []
    tape: Tape | None = None
    arch, mean, std = parts(twin.net)
    run: nn.Module = arch
    normalised = (x[:2] - mean) / std
    if half:
        arch, normalised = arch.to(torch.bfloat16), normalised.to(torch.bfloat16)
    if "fused" in way:
        twin.refresh()
        graph, layers = fuse(arch, channels_last(normalised))
        tape = taped(graph)
        run = tape or graph
    if half:
        inside = "inside" in way and tape is not None and tape.keep_ends(torch.bfloat16)
        names.append("bfloat16 inside" if inside else "bfloat16")
        seen = torch.float32 if inside else torch.bfloat16
        copied: nn.Module = InBfloat16(run if layers else _depthwise_in_float32(arch), mean, std, seen)
    elif isinstance(twin.net, Net):
        twin.net.arch, copied = run, twin.net
    else:
        copied = run
    if layers or "channels last" in way:
        copied = InLayout(copied)
        names.append("fused" if layers else "channels last")

    def refresh() -> None:
        twin.refresh()
        for layer in layers:
            layer.take()

    def release() -> None:
        for layer in layers:
            if isinstance(layer, Fused):
                layer.take()

    refresh()  # weights that stay in float32 went through bfloat16
    return Choice(
        _name(*names), copied.eval(), exact=not half, way=way, refresh=refresh, release=release, current=twin.current,
        arch=arch if layers and not half else None, tape=tape,
    )  # fmt: skip


def parts(net: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """The architecture with what it normalises by: in reduced precision that has to stay in front, in float32."""
    if isinstance(net, Net):
        return net.arch, net.mean.clone(), net.std.clone()
    one = torch.ones(1)
    device = next((p.device for p in net.parameters()), one.device)
    return net, torch.zeros(1, device=device), one.to(device)


def in_pieces(choice: Choice, size: int) -> Choice:
    """The same, asked about `size` images at a time."""
    return replace(choice, name=_name(choice.name, f"{size} at a time"), net=InPieces(choice.net, size))


WRAPS: dict[str, type[Compiled] | type[Graphed]] = {"compiled": Compiled, "captured": Graphed}
"""What can be done to a copy for images of one shape: torch.compile, CUDA graphs."""


def wrapped(choice: Choice, kind: str, shape: torch.Size) -> Choice:
    """The same in one of WRAPS for batches, or pieces, of this shape. Raises what torch raises that cannot do it."""
    name = _name(choice.name, kind)
    if isinstance(choice.net, InPieces):
        return replace(choice, name=name, net=InPieces(WRAPS[kind](choice.net.net, shape), choice.net.piece))
    return replace(choice, name=name, net=WRAPS[kind](choice.net, shape))


class InLayout(nn.Module):
    """A net that sees its images with channels last. Their gradient has the usual layout again."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_InLayout.apply(x))


class _InLayout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return channels_last(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class InBfloat16(nn.Module):
    """A net whose architecture runs in bfloat16; its weights are stored so, images and logits are float32. `seen`: the
    dtype in which the architecture takes them."""

    mean: Tensor
    std: Tensor

    def __init__(self, arch: nn.Module, mean: Tensor, std: Tensor, seen: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.net, self.seen = arch, seen
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std  # in float32: the images have more than eight bits
        return self.net(x.to(self.seen)).float()


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


def _name(*parts: str) -> str:
    return ", ".join(part for part in parts if part)

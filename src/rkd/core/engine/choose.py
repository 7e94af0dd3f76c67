"""Which way to run a net is fastest depends on net, batch, machine and version of torch: it is measured.

A candidate is a frozen copy of the net: with batch norms folded, with channels last in memory, in bfloat16. Each is
compared with the net itself in float32 before it may be used, and the time of its input gradient, which is what
attacks spend their time on, decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..interfaces import Probe
from ..modes import frozen_parameters, running
from ..types import View
from ..windows import Windows
from .compiled import Compiled
from .fold import put
from .local import LocalWindows, follows, plan
from .pieces import InPieces
from .twin import Twin

SAME = 1e-4
"""Largest deviation of a float32 candidate's logits from the net's, as a share of their size."""
NEAR = 0.05
"""The same of a bfloat16 candidate, whose findings the net itself confirms."""
WORTH = 300
"""Gradients of one batch below which a search is over before measuring has paid."""
PIECES = (32, 16, 64)
"""Numbers of images to ask a net about at once, tried on a CPU."""
MARGIN = 0.95
"""A candidate must take less than this share of the plain net's time."""


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
    current: Callable[[], bool] = lambda: True
    """Whether the net that was copied is still made of the same modules."""
    way: str = "plain"
    """What `made` calls it."""
    seconds: float = 0.0
    """That the gradient of one image takes, as measured."""

    def __str__(self) -> str:
        return self.name if self.speedup == 1 else f"{self.name}, {self.speedup:.1f} times as fast"


class Engine:
    """Chooses for searches that confirm what they find (`confirms = True`), once for each net and kind of batch.

    `bfloat16`: also offers reduced precision. It is about twice as fast again, and finds less: small steps uphill are
    lost in its rounding (docs/results/autoattack.md), so that it has to be asked for.
    """

    def __init__(self, tell: Callable[[str], None] = lambda text: None, bfloat16: bool = False) -> None:
        self.tell = tell
        self.bfloat16 = bfloat16
        self._known: dict[tuple[int, tuple[int, ...], str], Choice] = {}
        self._nets: list[nn.Module] = []
        """Kept alive, so that an id stays its net's own. Their weights must not change meanwhile."""

    def choice(self, net: nn.Module, attack: object, x: Tensor, batches: int) -> Choice | None:
        """The way to run a search on `batches` batches like `x`, or None: the net as it is."""
        if not getattr(attack, "confirms", False) or getattr(attack, "mode", "eval") != "eval":
            return None
        where = (id(net), tuple(x.shape[1:]), x.device.type)
        if where not in self._known:
            if batches * questions(attack) < WORTH:
                return None
            self._nets.append(net)
            chosen = choose(net, x, bfloat16=self.bfloat16, tell=self.tell)
            self._known[where] = replace(chosen, windows=followed(chosen, x, self.tell))
        known = self._known[where]
        return None if known.net is net and known.windows is None else known


def questions(attack: object) -> int:
    """Roughly how many gradients a search takes."""
    count = 1
    for name in ("steps", "targets", "restarts"):
        count *= max(1, int(getattr(attack, name, 1)))
    return max(count, int(getattr(attack, "queries", 0)) // 3)


class InLayout(nn.Module):
    """A net that sees its images with channels last."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(channels_last(x))


def channels_last(x: Tensor) -> Tensor:
    """`x (B, C, H, W)` with channels last in memory, also of one channel, where torch's own format is ambiguous."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class InBfloat16(nn.Module):
    """A net whose architecture runs in bfloat16; its weights are stored so, images and logits are float32.

    Depthwise convolutions stay in float32 on a CPU, which takes longer over them in bfloat16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net.to(torch.bfloat16)
        if mean.device.type == "cpu":
            for name, module in list(self.net.named_modules()):
                if type(module) is nn.Conv2d and module.groups > 1 and name:
                    put(self.net, name, _InFloat32(module))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std  # in float32: the images have more than eight bits
        return self.net(x.to(torch.bfloat16)).float()


class _InFloat32(nn.Module):
    """One layer of a bfloat16 net in float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float()).to(torch.bfloat16)


@torch.inference_mode(False)
def choose(
    net: nn.Module, x: Tensor, *, bfloat16: bool = False, budget: float = 2.0, view: View | None = None,
    probe: Probe | None = None, tell: Callable[[str], None] = lambda text: None,
) -> Choice:  # fmt: skip
    """The fastest way to the logits of `net` in eval mode and to their gradient by the images, for batches like `x`.

    `bfloat16`: also try reduced precision; only a caller that confirms what it finds on the net itself, or was asked
    for reduced precision, may ask for it. `budget`: seconds to spend on measuring; of a net so slow that it is not
    enough, the order of the candidates decides. `view`, `probe`: a net with routed norms as this view sees it. The
    net is left as it was.
    """
    asked: Probe = probe or net
    plain = Choice("plain", net)
    found = [plain]
    with running(net, "eval"), frozen_parameters(net):
        wanted = _gradient(asked, x)
        for candidate in _candidates(net, x, bfloat16, view):
            try:
                apart = _apart(candidate.net, x, wanted[0])
            except RuntimeError as error:
                tell(f"{candidate.name}: {str(error).splitlines()[0]}")
                continue
            if apart > (SAME if candidate.exact else NEAR):
                tell(f"{candidate.name}: its logits are {apart:.1g} off")
                continue
            found.append(candidate)
        # On a CPU a net is slower on many images than on a few (see `pieces`): copies are compared on a few, the best
        # of them in pieces of several sizes.
        cpu = x.device.type == "cpu"
        few = x[: PIECES[0]] if cpu else x
        seconds = _race([(asked, few), *((other.net, few) for other in found[1:])], budget)
        for choice, taken in zip(found, seconds, strict=True):
            tell(f"{choice.name}: {1e6 * taken:.0f} us an image")
        best = found[min(range(len(found)), key=lambda place: seconds[place])]
        way = asked if best is plain else best.net
        # The net as a routed view sees it is no module that could be wrapped.
        wraps = cpu and (best is not plain or probe is None)
        sizes = [size for size in PIECES if wraps and size < len(x) and _alone(way, x, size)]
        whole, *seconds = _race([(asked, x), (way, x), *((way, x[:size]) for size in sizes)], budget)
    taken = min(seconds)
    for size, time_taken in zip([len(x), *sizes], seconds, strict=True):
        tell(f"{best.name}, {size} at a time: {1e6 * time_taken:.0f} us an image, plain {1e6 * whole:.0f}")
    chosen = replace(plain, seconds=whole)
    if taken <= MARGIN * whole:
        place = seconds.index(taken)
        chosen = replace(best, speedup=whole / taken, seconds=taken)
        if place:
            chosen = in_pieces(chosen, sizes[place - 1])
    return chosen


def in_pieces(choice: Choice, size: int) -> Choice:
    """The same, asked about `size` images at a time."""
    return replace(choice, name=_name(choice.name, f"{size} at a time"), net=InPieces(choice.net, size))


def followed(choice: Choice, x: Tensor, tell: Callable[[str], None]) -> Callable[[Tensor], Windows] | None:
    """How to follow windows of images like `x (B, C, H, W)`, if that is exact and pays."""
    if not choice.exact or x.device.type != "cpu" or x.ndim != 4:
        return None
    net: nn.Module = choice.net
    net = net.net if isinstance(net, InPieces) else net
    layout = isinstance(net, InLayout)
    arch, mean, std = _parts(net.net if isinstance(net, InLayout) else net)

    def before(images: Tensor) -> Tensor:
        images = (images - mean) / std
        return channels_last(images) if layout else images

    with running(choice.net, "eval"):
        how = plan(arch, x, before)
        if how is None:
            tell("windows: a net that cannot be read")
            return None
        apart, times = follows(how, choice.net, x)
    if apart > SAME or times * MARGIN < 1:
        tell(f"windows: {apart:.1g} off, {times:.2f} times as fast: not used")
        return None
    tell(f"windows: {times:.1f} times as fast")
    return lambda images: LocalWindows(choice.net, images, how)


def _candidates(net: nn.Module, x: Tensor, bfloat16: bool, view: View | None = None) -> list[Choice]:
    """Copies of the net that may be faster."""
    ways = ["folded", "folded, channels last"]
    ways += ["folded, bfloat16", "folded, bfloat16, channels last"] if bfloat16 else []
    found: list[Choice] = []
    try:
        for way in ways:
            found.append(made(way, net, x, view))
    except Exception:  # a module that cannot be copied or converted runs as it is
        return found
    return [choice for choice in found if choice.name]


def made(way: str, net: nn.Module, x: Tensor, view: View | None = None) -> Choice:
    """The copy of `net` that is called so; without its parts that are the net's own. `x (B, ...)`: what it takes.

    Raises whatever a module raises that cannot be copied.
    """
    twin = Twin(net, x[:2], view)
    copied, names = twin.net, ["folded"] if twin.pairs else []
    if "bfloat16" in way:
        arch, mean, std = _parts(copied)
        copied = InBfloat16(arch, mean, std)
        names.append("bfloat16")
    if "channels last" in way:
        copied = InLayout(copied)
        names.append("channels last")
    twin.refresh()  # a layer that stays in float32 went through bfloat16
    return Choice(
        _name(*names), copied.eval(), exact="bfloat16" not in way, way=way, refresh=twin.refresh, current=twin.current
    )


def compiled(choice: Choice, x: Tensor, tell: Callable[[str], None]) -> Choice:
    """The same compiled, for batches like `x`, where that is faster and the same function."""
    piece = getattr(choice.net, "piece", None)
    net: nn.Module = choice.net.net if isinstance(choice.net, InPieces) else choice.net
    few = x[: piece or len(x)]
    fast = Compiled(net, few.shape)
    try:
        apart = _apart(fast, few, _gradient(net, few)[0])
    except Exception as error:  # no compiler, or whatever else stops it
        tell(f"compiled: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return choice
    before, after = _race([(net, few), (fast, few)], 2.0)
    tell(f"{choice.name}, compiled: {1e6 * after:.0f} us an image, before {1e6 * before:.0f}, {apart:.1g} off")
    if apart > (SAME if choice.exact else NEAR) or after > MARGIN * before:
        return choice
    return replace(as_compiled(choice, few.shape), speedup=choice.speedup * before / after, seconds=after)


def as_compiled(choice: Choice, shape: torch.Size) -> Choice:
    """The same compiled for batches, or pieces, of this shape."""
    name = _name(choice.name, "compiled")
    if isinstance(choice.net, InPieces):
        return replace(choice, name=name, net=InPieces(Compiled(choice.net.net, shape), choice.net.piece))
    return replace(choice, name=name, net=Compiled(choice.net, shape))


def _alone(net: Probe, x: Tensor, size: int) -> bool:
    """Whether `net` says of a few images what it says of them among others."""
    with torch.no_grad():
        few, many = net(x[:size]), net(x)[:size]
    return float((few - many).abs().max()) <= SAME * float(many.abs().max().clamp_(min=1e-6))


def _parts(net: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """The architecture with what it normalises by: in reduced precision that has to stay in front, in float32."""
    from ..nets import Net

    if isinstance(net, Net):
        return net.arch, net.mean.clone(), net.std.clone()
    one = torch.ones(1)
    device = next((p.device for p in net.parameters()), one.device)
    return net, torch.zeros(1, device=device), one.to(device)


def _name(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _gradient(net: Probe, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a number made of them by the images."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        if not logits.requires_grad:
            return logits, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(logits.float().logsumexp(1).sum(), x)
    return logits.detach(), gradient


def _apart(twin: Probe, x: Tensor, logits: Tensor) -> float:
    other, gradient = _gradient(twin, x)
    if other.shape != logits.shape or not bool(other.isfinite().all() & gradient.isfinite().all()):
        return float("inf")
    return float((other - logits).abs().max() / logits.abs().max().clamp_(min=1e-6))


def _race(tries: Sequence[tuple[Probe, Tensor]], budget: float) -> list[float]:
    """Seconds an image, the fastest of a few rounds of each, in turn: all else that the machine does only slows it."""
    best = [float("inf")] * len(tries)
    started = time.perf_counter()
    rounds = 0
    while rounds < 2 or (rounds < 5 and time.perf_counter() - started < budget):
        for place, (net, x) in enumerate(tries):
            _wait(x.device)
            begun = time.perf_counter()
            _gradient(net, x)
            _wait(x.device)
            best[place] = min(best[place], (time.perf_counter() - begun) / len(x))
        rounds += 1
        if time.perf_counter() - started > budget:
            break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Which way to run a net is fastest depends on net, batch, machine and version of torch: it is measured.

A candidate is a frozen copy of the net: with batch norms folded, with channels last in memory, in bfloat16. Each is
compared with the net itself in float32 before it may be used, and the time of its input gradient, which is what
attacks spend their time on, decides.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modes import frozen_parameters, running
from .fold import folded, replace

SAME = 1e-4
"""Largest deviation of a float32 candidate's logits from the net's, as a share of their size."""
NEAR = 0.05
"""The same of a bfloat16 candidate, whose findings the net itself confirms."""
WORTH = 300
"""Gradients of one batch below which a search is over before measuring has paid."""
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
            if batches * _questions(attack) < WORTH:
                return None
            self._nets.append(net)
            self._known[where] = choose(net, x, bfloat16=self.bfloat16, tell=self.tell)
        known = self._known[where]
        return None if known.net is net else known


def _questions(attack: object) -> int:
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
        return self.net(x.contiguous(memory_format=torch.channels_last))


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
                    replace(self.net, name, _InFloat32(module))
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
    net: nn.Module, x: Tensor, *, bfloat16: bool = False, budget: float = 2.0,
    tell: Callable[[str], None] = lambda text: None,
) -> Choice:  # fmt: skip
    """The fastest way to the logits of `net` in eval mode and to their gradient by the images, for batches like `x`.

    `bfloat16`: also try reduced precision; only a caller that confirms what it finds on the net itself may ask for
    it. `budget`: seconds to spend on measuring; of a net so slow that it is not enough, the order of the candidates
    decides. The net is left as it was.
    """
    plain = Choice("plain", net)
    found = [plain]
    with running(net, "eval"), frozen_parameters(net):
        wanted = _gradient(net, x)
        for name, twin, exact in _candidates(net, x, bfloat16):
            try:
                apart = _apart(twin, x, wanted[0])
            except RuntimeError as error:
                tell(f"{name}: {str(error).splitlines()[0]}")
                continue
            if apart > (SAME if exact else NEAR):
                tell(f"{name}: its logits are {apart:.1g} off")
                continue
            found.append(Choice(name, twin, exact=exact))
        if len(found) == 1:
            return plain
        seconds = _race([choice.net for choice in found], x, budget)
    best = min(range(len(found)), key=lambda place: seconds[place])
    for choice, taken in zip(found, seconds, strict=True):
        tell(f"{choice.name}: {1000 * taken:.1f} ms")
    if seconds[best] > MARGIN * seconds[0]:
        return plain
    return Choice(found[best].name, found[best].net, seconds[0] / seconds[best], found[best].exact)


def _candidates(net: nn.Module, x: Tensor, bfloat16: bool) -> list[tuple[str, nn.Module, bool]]:
    """Name, copy and whether it is float32."""
    found: list[tuple[str, nn.Module, bool]] = []

    def twin(base: nn.Module) -> nn.Module:
        return copy.deepcopy(base).eval().requires_grad_(False)

    merged = folded(net, x[:2])
    try:
        base, how = (twin(net), "") if merged is None else (merged, "folded")
        if merged is not None:
            found.append((how, merged, True))
        found.append((_name(how, "channels last"), InLayout(twin(base)), True))
        if bfloat16:
            arch, mean, std = _parts(base)
            half = InBfloat16(twin(arch), mean, std)
            found.append((_name(how, "bfloat16"), half, False))
            found.append((_name(how, "bfloat16, channels last"), InLayout(twin(half)), False))
    except Exception:  # a module that cannot be copied or converted runs as it is
        return found
    return found


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


def _gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a number made of them by the images."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        if not logits.requires_grad:
            return logits, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(logits.float().logsumexp(1).sum(), x)
    return logits.detach(), gradient


def _apart(twin: nn.Module, x: Tensor, logits: Tensor) -> float:
    other, gradient = _gradient(twin, x)
    if other.shape != logits.shape or not bool(other.isfinite().all() & gradient.isfinite().all()):
        return float("inf")
    return float((other - logits).abs().max() / logits.abs().max().clamp_(min=1e-6))


def _race(nets: list[nn.Module], x: Tensor, budget: float) -> list[float]:
    """The fastest of a few rounds of each, in turn: what else the machine does only ever slows one down."""
    best = [float("inf")] * len(nets)
    started = time.perf_counter()
    rounds = 0
    while rounds < 2 or (rounds < 5 and time.perf_counter() - started < budget):
        for place, net in enumerate(nets):
            _wait(x.device)
            begun = time.perf_counter()
            _gradient(net, x)
            _wait(x.device)
            best[place] = min(best[place], time.perf_counter() - begun)
        rounds += 1
        if time.perf_counter() - started > budget:
            break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

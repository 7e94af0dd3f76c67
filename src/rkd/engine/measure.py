"""How far a way to run a net is off the net itself, and how long it takes over a gradient by the images."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.interfaces import Probe

SAME = 1e-4
"""Largest deviation of a float32 candidate's logits from the net's, as a share of their size."""
SLOPE = 1e-3
"""The same of its gradient by an image, as a share of its length, on the median image: on some a ReLU turns over."""
LONG_ENOUGH = 0.02
"""Seconds over which a gradient is timed, if eight of them take as long."""
BEATEN = 1.25
"""How many times as long as the fastest one may take in two rounds to go on being timed."""
NEAR = 0.05
"""Largest deviation of a bfloat16 candidate's logits, whose findings the net itself confirms."""


def gradient(net: Probe, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(B, K)` of the images `x (B, C, H, W)`, and the gradient by them of a number made of the logits."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        if not logits.requires_grad:
            return logits, torch.zeros_like(x)
        (found,) = torch.autograd.grad(logits.float().logsumexp(1).sum(), x)
    return logits.detach(), found


def apart(net: Probe, x: Tensor, expected: tuple[Tensor, Tensor], exact: bool = True) -> float:
    """How far `net` is off what `gradient` gave for another, as a share of what may be: at most 1 is alike.

    `exact`: to float32's rounding; otherwise to bfloat16's, and of gradients only that they are finite.
    """
    wanted, slope = expected
    logits, other = gradient(net, x)
    if logits.shape != wanted.shape or not bool(logits.isfinite().all() & other.isfinite().all()):
        return float("inf")
    found = deviation(logits, wanted) / (SAME if exact else NEAR)
    if not exact:
        return found
    size = slope.flatten(1).norm(dim=1).clamp_(min=torch.finfo(slope.dtype).tiny)
    return max(found, float(((other - slope).flatten(1).norm(dim=1) / size).median()) / SLOPE)


def deviation(found: Tensor, wanted: Tensor) -> float:
    """The largest deviation as a share of the largest number wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_(min=1e-6))


def alone(net: Probe, x: Tensor, size: int, exact: bool = True) -> bool:
    """Whether `net` says of a few images what it says of them among others. `exact`: to float32's rounding."""
    with torch.no_grad():
        few, many = net(x[:size]), net(x)[:size]
    return deviation(few, many) <= (SAME if exact else NEAR)


def race(tries: Sequence[tuple[Probe, Tensor]], budget: float) -> list[float]:
    """Seconds an image, the fastest of a few rounds of each, in turn: all else that the machine does only slows it.

    Short gradients are taken several times on end: in a search they follow one another too, and find the processor's
    caches as the last one left them. After two rounds only those go on that are near the fastest. `budget`: seconds to
    spend.
    """
    best = [float("inf")] * len(tries)
    often = [1] * len(tries)
    started = time.perf_counter()
    rounds = 0
    while rounds < 2 or (rounds < 5 and time.perf_counter() - started < budget):
        for place, (net, x) in enumerate(tries):
            if rounds >= 2 and best[place] > BEATEN * min(best):
                continue
            wait(x.device)
            begun = time.perf_counter()
            for _ in range(often[place]):
                gradient(net, x)
            wait(x.device)
            taken = (time.perf_counter() - begun) / often[place]
            best[place] = min(best[place], taken / len(x))
            often[place] = min(max(int(LONG_ENOUGH / taken), 1), 8)
        rounds += 1
        if time.perf_counter() - started > budget:
            break
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

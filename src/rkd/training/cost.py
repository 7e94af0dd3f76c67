"""Counting forwards and backwards of whole nets: cost is part of a method's contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(slots=True)
class Count:
    """How often a net ran, and how often a gradient ran back through one of those runs."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counting(nets: Mapping[str, nn.Module]) -> Iterator[dict[str, Count]]:
    """Inside, every run of each net is counted, whoever calls it."""
    counts = {name: Count() for name in nets}
    handles = [net.register_forward_hook(_counter(counts[name])) for name, net in nets.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _counter(count: Count):
    def backward(gradient: Tensor) -> None:
        count.backwards += 1

    def forward(module: nn.Module, inputs: object, output: Tensor) -> None:
        count.forwards += 1
        if output.requires_grad:
            output.register_hook(backward)

    return forward

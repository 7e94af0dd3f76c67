"""Logits, a value made of them, and its gradient by the images: what a search by gradients asks at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .interfaces import Target


def slope(target: Target, x: Tensor, value: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One forward and one backward for each of the images `x (B, C, H, W)`.

    `value(logits, rows)`: from the logits `(b, K)` of the images at `rows`, a slice of x, a number for each, `(b,)`.
    Returns the logits `(B, K)`, the values `(B,)` and their gradient by x, all detached. The images are asked in as
    many pieces as suit the engine that runs the net (`target.piece` images at once, if it says so): a value must
    depend on its own image alone.
    """
    found = [_one(target, x[rows], value, rows) for rows in pieces(len(x), getattr(target, "piece", None))]
    if len(found) == 1:
        return found[0]
    logits, values, gradient = (torch.cat(column) for column in zip(*found, strict=True))
    return logits, values, gradient


def pieces(count: int, most: int | None) -> Iterator[slice]:
    """Slices of `count` rows, of nearly equal length and none longer than `most`; at least one."""
    parts = max(-(-count // most), 1) if most else 1
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


def _one(
    target: Target, x: Tensor, value: Callable[[Tensor, slice], Tensor], rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(x)
        values = value(logits, rows)
        if not values.requires_grad:  # a net whose logits do not depend on the images
            return logits, values, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return logits.detach(), values.detach(), gradient

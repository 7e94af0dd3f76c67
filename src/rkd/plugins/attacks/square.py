"""Square Attack: random search without gradients, one square of pixels at a time, by the logits' margin alone.

    x_0 = P(x + eps * vertical stripes, +1 or -1 by chance)
    repeat: change one square window of x_i by chance; keep the change if z_y - max_{k != y} z_k falls

In Linf every pixel of the window goes to the ball's surface, up or down by chance for each channel. In L2 a window
takes over the whole distance that another one, and the budget not yet spent, leave for it, in the shape of two
pyramids of opposite sign. So it does in L1, with steeper pyramids and the exact projection onto ball and [0, 1] (Croce
and Hein, 2021). The window covers a share p of the image that begins at `p_init` and is halved after 10,
50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000 queries. A search that needs no gradient succeeds where gradients
are masked: if it beats the gradient's attacks, their numbers mean nothing.

References: andriushchenko2020square, croce2021mind

The margin is the attack's own loss: the objective of the run, `target.score`, is not asked. A sample leaves once the
net is fooled, confirmed by a second forward; one that the net gets wrong as it is, is returned unchanged. Where nothing
fooled the net, the image of the lowest margin is returned.

All samples try the same windows in the same order, each with its own signs; windows and signs follow from the seed
alone, so that a sample's result does not depend on the batch. A window is changed in place and changed back where it
did not help (`rkd.plugin.Patches`), so that a query costs hardly more than its forward, and less where the target knows
how to compute a changed window alone.

Where the user allows reduced precision, margins are computed in it, if that is faster. The search then takes other
turns, as it does with another seed.

Deviations from the authors' code (pyautoattack 0.2.0, as AutoAttack calls it: margin, no rescaled schedule):

- A window may touch the lower and the right border. There it never does, though the paper says so: its positions are
  drawn from 0 to below h - s.
- There one sign serves all samples (Linf). Here, as in the paper, each draws its own.
- Images smaller than 5 pixels have a start of stripes of one pixel (L2); there they end in a division by zero.
- Images smaller than 16 pixels get windows of one pixel in the end (L2); there no window is smaller than 3 x 3, which
  is much of an image of 7 x 7 pixels, and all of one of 3 x 3.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import (
    AttackTraits,
    Mode,
    Noise,
    Norm,
    Patches,
    Refused,
    Schedule,
    Target,
    ThreatModel,
    hookimpl,
    key,
    ops,
)

from ._early_stop import ActiveSamples, FooledImages, begin, finite_margin, runs
from ._options import CONVEX, attacker, check_search

_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_BLOCK = 50
"""Queries between two looks at who has fallen."""
_SMALL = 1e-12
_FEW_PIXELS = 16
"""Below so many pixels of height or width, windows in L2 shrink to one pixel."""


@dataclass
class Square:
    """Square Attack: random search without gradients, 5,000 queries (Andriushchenko et al. 2020).

    `eps` in units of [0, 1] images; None: the data set's. `p_init`: the share of the image that the first
    windows cover.
    """

    eps: Schedule | None = None
    queries: int = 5000
    norm: Norm | None = None
    restarts: int = 1
    p_init: float = 0.8
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, confirms=True, black_box=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=CONVEX, queries=self.queries, restarts=self.restarts)
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init is a share of the image, above 0 and at most 1, got {self.p_init:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `queries` + 1 forwards a restart."""
        if x.ndim != 4:
            raise Refused(f"square changes windows of images (B, C, H, W), and these have the shape {tuple(x.shape)}")
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=CONVEX)
        result = begin(x, target)
        for remaining, selected, _ in runs(result, target.low_precision("forward"), self.restarts, "square"):
            run = search(x[remaining], selected, threat, self.queries, self.p_init)
            result.add_better(remaining, run.images, run.fooled, run.score)
        return result.images


@dataclass
class _Search(ActiveSamples):
    """`candidate` are the images of the lowest margin so far, which `patches` changes in place."""

    margin: Tensor
    signs: Tensor
    patches: Patches

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.patches.select(rows)
        self.candidate = self.patches.x


@torch.no_grad()
def search(x: Tensor, target: Target, threat: ThreatModel, queries: int, p_init: float) -> FooledImages:
    """One random search, `queries` + 1 forwards long, scored by how low the margin is."""
    result = FooledImages(x)
    shared = Noise(key(target.noise.key, "windows"), torch.zeros(1, dtype=torch.int64))  # drawn without a device
    if threat.norm == "Linf":  # each column of each channel up or down
        signs = _signs(target, x.shape[1], x.shape[3]).reshape(len(x), x.shape[1], 1, -1)
        start = (x + threat.eps * signs).clamp_(0, 1)
    else:
        start = _tiles(x, target, threat, shared)
    margin = finite_margin(target.logits(start), target.y)
    patches = target.patches(start)
    active = _Search.of(
        target, x, patches.x, margin <= 0, margin=margin, signs=margin, patches=patches,
    )  # fmt: skip
    for done in range(queries):
        if done in (0, 1, 5, 10, 25) or not done % _BLOCK:
            active.fooled = active.margin <= 0
            if not result.confirm(active):
                return result
        if not done % _BLOCK:
            chances = shared.uniform((_BLOCK, 5))[0].tolist()
            active.signs = _signs(active.target, _BLOCK, x.shape[1])
        share = p_init / 2 ** sum(done > after for after in _HALVED)
        change = _change_linf if threat.norm == "Linf" else _change_two
        change(active, threat, share, active.signs[:, done % _BLOCK], chances[done % _BLOCK])
    active.fooled = active.margin <= 0
    if result.confirm(active):
        result.images[active.position], result.score[active.position] = active.candidate, -active.margin
    return result


def _change_linf(active: _Search, threat: ThreatModel, share: float, signs: Tensor, chances: list[float]) -> None:
    """Try one window on the surface of the ball."""
    height, width = active.x.shape[2:]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    rows, columns = _corner(chances[0], height, side), _corner(chances[1], width, side)
    new = torch.add(active.x[:, :, rows, columns], signs, alpha=threat.eps).clamp_(0, 1)
    _try(active, rows, columns, new)


def _change_two(active: _Search, threat: ThreatModel, share: float, signs: Tensor, chances: list[float]) -> None:
    """Try to move what is in a second window, and the budget left, into a first one. The whole image changes, since it
    is brought back to the surface of the ball."""
    height, width = active.x.shape[2:]
    side = max(round(math.sqrt(share * height * width)), 1 if min(height, width) < _FEW_PIXELS else 3)
    side = min(side + (side % 2 == 0), height, width)
    first, second = (
        (..., _corner(down, height, side), _corner(right, width, side)) for down, right in (chances[0:2], chances[2:4])
    )
    delta = active.candidate - active.x
    norm, order = threat.norm, 1 if threat.norm == "L1" else 2
    spent = delta.abs().pow_(order).sum((1, 2, 3), keepdim=True)
    window = delta[first].clone()
    both = torch.zeros_like(delta[:1, :1])
    both[first] = both[second] = 1
    moved = (delta * both).abs_().pow_(order).sum((2, 3), keepdim=True)
    budget = (threat.eps**order - spent).clamp_(min=0) / delta.shape[1] + moved
    if norm == "L1":  # as the authors: too much by the number of channels, and brought back by the projection
        budget *= delta.shape[1]
    pyramids = _pyramids(side, chances[4] > 0.5, delta.device, norm)
    shape = pyramids * signs + window / (_length(window, order) + _SMALL)
    delta[second] = 0
    delta[first] = shape / (_length(shape, order) + _SMALL) * budget.pow_(1 / order)
    _try(active, slice(0, height), slice(0, width), _stretched(active.x, delta, threat))


def _try(active: _Search, rows: slice, columns: slice, new: Tensor) -> None:
    """Keep new windows `(B, C, rows, columns)` where they lower the margin."""
    margin = finite_margin(active.patches.ask(rows, columns, new), active.y)
    better = margin < active.margin
    active.patches.settle(better)
    active.margin = torch.where(better, margin, active.margin)


def _tiles(x: Tensor, target: Target, threat: ThreatModel, shared: Noise) -> Tensor:
    """The start in L2 and L1: about 5 x 5 tiles of pyramids."""
    height, width = x.shape[2:]
    side = max(min(height, width) // 5, 1)
    edge = (height - 5 * side) // 2 if height >= 5 * side else 0
    down, right = range(edge, height - side + 1, side), range(edge, width - side + 1, side)
    signs = _signs(target, len(down) * len(right), x.shape[1])
    turned = shared.uniform((len(down) * len(right),))[0].tolist()
    delta = torch.zeros_like(x)
    for place, (top, left) in enumerate((top, left) for top in down for left in right):
        tile = _pyramids(side, turned[place] > 0.5, x.device, threat.norm)
        delta[:, :, top : top + side, left : left + side] = tile * signs[:, place]
    return _stretched(x, delta, threat)


def _signs(target: Target, count: int, channels: int) -> Tensor:
    """+1 or -1 by chance, `(B, count, channels, 1, 1)`."""
    return target.noise.uniform((count, channels, 1, 1)).sub_(0.5).sign_().add_(0.5).sign_()


def _corner(chance: float, length: int, side: int) -> slice:
    """Where a window of that side lies along an edge of that length, each place being as likely."""
    begin = int(chance * (length - side + 1))
    return slice(begin, begin + side)


@lru_cache(maxsize=64)
def _pyramids(side: int, turned: bool, device: torch.device, norm: Norm = "L2") -> Tensor:
    """Two pyramids side by side, of opposite sign, `(side, side)` of length 1."""
    half, order = side // 2, 1 if norm == "L1" else 2
    shape = torch.zeros(side, side)
    for rows, sign in ((slice(0, half), 1), (slice(half, side), -1)):
        height = len(shape[rows])
        if height:
            far = torch.maximum(
                (torch.arange(height) - height // 2).abs().unsqueeze(1), (torch.arange(side) - side // 2).abs()
            )
            # A layer of weight 1 / k², in L1 1 / k⁴, reaches k - 1 pixels from the middle.
            layers = 1 / torch.arange(1, max(height, side) // 2 + 2).float() ** (4 if norm == "L1" else 2)
            block = layers.flip(0).cumsum(0).flip(0)[far]
            shape[rows] = sign * block / block.norm(order)
    shape /= shape.norm(order)
    return (shape.T if turned else shape).to(device)


def _length(windows: Tensor, order: int) -> Tensor:
    """The L2 or L1 norm of each channel, `(B, C, 1, 1)`."""
    return torch.linalg.vector_norm(windows, ord=order, dim=(2, 3), keepdim=True)


def _stretched(x: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    """The image on the surface of the ball in the direction `delta`, clamped to [0, 1]; in L1 the nearest image."""
    if threat.norm == "L1":
        return ops.projection(x, threat.eps, "L1")(x + delta)
    return (x + delta * ops.per_image(threat.eps / (ops.image_norm(delta, "L2") + _SMALL), x)).clamp_(0, 1)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"square": Square}

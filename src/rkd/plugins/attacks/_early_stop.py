"""What searches share that let a sample go once the net is fooled: the samples under way, and the images that did it.

A search keeps its state in a `Flight`, one row a sample, and asks `Catch.settle` after some steps, not after each:
the question makes the host wait for the device. An image is counted only after the net has seen it once more; the
sample then leaves, and the batch shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import get_args

import torch
from torch import Tensor

from rkd.plugin import Mode, Noise, Norm, Schedule, Target, ThreatModel, key, ops

from .pgd import _direction, _per_image, check_pixels, check_positive, check_word

MOST_TARGETS = 9
"""As many classes other than the label as the targeted attacks of AutoAttack try, in the order of their logits."""


def due(step: int) -> bool:
    """After which steps, counted from 1, to ask who has fallen: often at first, when most fall."""
    return step in (1, 2, 4) or step % 5 == 0


def judged(x: Tensor, target: Target) -> Tensor:
    """The logits by which an image counts: the net's own in float32."""
    with torch.no_grad():
        return target.reference(x)


def fools(x: Tensor, target: Target) -> Tensor:
    """Whether the net is wrong on each image, `(B,)` bool."""
    return misses(judged(x, target), target.y)


def misses(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the net is wrong, `(B,)` bool; logits that are no numbers count as in `ops.correct`. What a search asks
    after each step."""
    return ~ops.correct(logits, y)


def label_lead(logits: Tensor, y: Tensor) -> Tensor:
    """The label's lead over the others, `ops.margin (B,)`; none at all where the logits are no numbers."""
    return ops.margin(logits, y).where(logits.isfinite().all(1), -torch.inf)


def goals(x: Tensor, target: Target, limit: int) -> Tensor:
    """The classes to aim at, `(B, min(limit, K - 1))`: those other than the label by falling logit."""
    with torch.no_grad():
        logits = target.logits(x)
    others = logits.float().scatter(1, ops.hard(target.y).unsqueeze(1), -torch.inf)
    return others.topk(min(limit, logits.shape[1] - 1), dim=1).indices


def part(target: Target, rows: Tensor, *name: object) -> Target:
    """The target for the samples at `rows` alone, with random numbers of its own that follow from `name`."""
    chosen = target.select(rows)
    chosen.noise = Noise(key(chosen.noise.key, *name), chosen.noise.index)
    return chosen


@dataclass
class Flight:
    """The samples under way. Subclasses add tensors of theirs, one row a sample; None is allowed.

    `place`: where each sample stands in the whole batch. `fooled`: whether `hit` holds an image that fools the net,
    by the search's own forwards.
    """

    target: Target
    place: Tensor
    x: Tensor
    y: Tensor
    hit: Tensor
    fooled: Tensor

    def keep(self, rows: Tensor) -> None:
        """Go on with the samples at `rows`, a mask or positions, alone."""
        self.target = self.target.select(rows)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                setattr(self, item.name, value[rows])


class Catch:
    """The images that fooled the net, `images (B, C, H, W)`, and whether there is one, `fooled (B,)`."""

    def __init__(self, x: Tensor) -> None:
        self.images = x.clone()
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def settle(self, flight: Flight) -> bool:
        """Let go whoever has fallen. False where nobody is left. Makes the host wait."""
        rows = flight.fooled.nonzero().squeeze(1)
        if len(rows):
            images = flight.hit[rows]
            sure = fools(images, flight.target.select(rows))
            gone = rows[sure]
            self.add(flight.place[gone], images[sure])
            # Whoever was not confirmed goes on searching.
            flight.fooled.zero_()
            stay = torch.ones_like(flight.fooled)
            stay[gone] = False
            flight.keep(stay)
        return len(flight.place) > 0

    def add(self, place: Tensor, images: Tensor) -> None:
        """Note images that fool the net, for the samples at `place`."""
        self.images[place] = images
        self.fooled[place] = True

    def rest(self) -> Tensor:
        """The samples that are not fooled yet, as positions. Makes the host wait."""
        return (~self.fooled).nonzero().squeeze(1)


def rounds(
    caught: Catch, target: Target, aims: Tensor, restarts: int, name: str
) -> Iterator[tuple[Tensor, Target, Tensor, int]]:
    """The searches of a targeted attack, towards each class of `aims (B, classes)` and as often as there are restarts,
    until nobody is left: the samples still standing as positions, the target for them, their goals, which restart."""
    for rank in range(aims.shape[1]):
        for restart in range(restarts):
            rest = caught.rest()
            if not len(rest):
                return
            yield rest, part(target, rest, name, rank, restart), aims[rest, rank], restart


def fewer_targets(name: str, classes: int, targets: int) -> list[str]:
    """What to tell where there are not as many classes to aim at as an attack would try."""
    if classes > targets:
        return []
    return [f"{name}: {classes - 1} target classes, not {targets}: there are {classes} classes"]


def begin(x: Tensor, target: Target) -> Catch:
    """The state before any search: whatever the net gets wrong as it is needs none."""
    caught = Catch(x)
    caught.fooled = fools(x, target)
    return caught


def surface(x: Tensor, target: Target, threat: ThreatModel) -> Tensor:
    """A random way to the surface of the ball."""
    if threat.norm == "L2":
        return threat.eps * _direction(target.noise.normal(x.shape[1:]), "L2")
    noise = target.noise.uniform(x.shape[1:], -1, 1)
    return threat.eps * noise / _per_image(noise.flatten(1).abs().amax(1).clamp_(min=1e-12), x)


def check_search(eps: Schedule | None, norm: Norm | None, mode: Mode, **counts: int) -> None:
    """Raise ValueError for nonsense among the options that these searches share."""
    check_positive("eps", eps)
    if norm == "Linf":
        check_pixels(eps, ValueError)
    check_word("norm", norm, None, *get_args(Norm))
    check_word("mode", mode, *get_args(Mode))
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

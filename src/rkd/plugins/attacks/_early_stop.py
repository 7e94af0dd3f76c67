"""Early stopping: a sample leaves an attack once its image fools the net.

An attack keeps its state in `ActiveSamples`, one row a sample, and calls `FooledImages.confirm` after some steps, not
after each, since that makes the host wait for the device. An image is counted only if the net itself, in float32, is
wrong on it; the sample then leaves, and the batch shrinks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from rkd.plugin import Noise, Patches, Target, key, ops

MOST_TARGETS = 9
"""As many classes other than the label as the targeted attacks of AutoAttack try, in the order of their logits."""


def is_check_step(step: int) -> bool:
    """After which steps, counted from 1, to confirm fooled images: often at first, when most are found."""
    return step in (1, 2, 4) or step % 5 == 0


def reference_logits(x: Tensor, target: Target) -> Tensor:
    """The logits by which an image counts, without a graph: the net's own in float32."""
    with torch.no_grad():
        return target.reference(x)


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the net is wrong, `(B,)` bool; logits that are not finite count as wrong."""
    return ~ops.correct(logits, y)


def finite_margin(logits: Tensor, y: Tensor) -> Tensor:
    """`ops.margin (B,)`, and -inf where the logits are not finite."""
    return ops.margin(logits, y).where(logits.isfinite().all(1), -torch.inf)


def target_classes(x: Tensor, target: Target, limit: int) -> Tensor:
    """The classes of a targeted attack, `(B, min(limit, K - 1))`: those other than the label by falling logit."""
    with torch.no_grad():
        logits = target.logits(x)
    others = logits.float().scatter(1, ops.hard(target.y).unsqueeze(1), -torch.inf)
    return others.topk(min(limit, logits.shape[1] - 1), dim=1).indices


def for_samples(target: Target, rows: Tensor, *name: object) -> Target:
    """The target for the samples at `rows` alone, with random numbers of its own that follow from `name`."""
    selected = target.select(rows)
    selected.noise = Noise(key(selected.noise.key, *name), selected.noise.index)
    return selected


@dataclass
class ActiveSamples:
    """The samples under attack. Subclasses add tensors of theirs, one row a sample; None is allowed.

    `position`: the rows of the samples in the whole batch. `fooled`: whether `candidate` holds an image that fools the
    net by the attack's own queries.
    """

    target: Target
    position: Tensor
    x: Tensor
    y: Tensor
    candidate: Tensor
    fooled: Tensor

    @classmethod
    def of(
        cls, target: Target, x: Tensor, candidate: Tensor, fooled: Tensor | None = None,
        position: Tensor | None = None, **more: Tensor | Patches | None,
    ) -> Self:  # fmt: skip
        """All samples of a target; `fooled` where nothing else is said: none, `position`: one after the other."""
        fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device) if fooled is None else fooled
        position = torch.arange(len(x), device=x.device) if position is None else position
        return cls(target, position, x, target.y, candidate, fooled, **more)

    def keep(self, rows: Tensor) -> None:
        """Go on with the samples at `rows`, a mask or positions, alone."""
        self.target = self.target.select(rows)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                setattr(self, item.name, value[rows])


class FooledImages:
    """The images that fool the net, `images (B, C, H, W)`, and whether there is one, `fooled (B,)`; of the other
    samples, if a search notes them, those of the highest `score (B,)`."""

    def __init__(self, x: Tensor) -> None:
        self.images = x.clone()
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.score = x.new_full((len(x),), -torch.inf)

    def confirm(self, active: ActiveSamples) -> bool:
        """Take over the candidates that fool the net itself, whose samples leave; the others stay. False where no
        sample is left. Makes the host wait."""
        rows = active.fooled.nonzero().squeeze(1)
        if len(rows):
            images = active.candidate[rows]
            target = active.target.select(rows)
            confirmed = misclassified(reference_logits(images, target), target.y)
            leaving = rows[confirmed]
            self.add(active.position[leaving], images[confirmed])
            active.fooled.zero_()
            stay = torch.ones_like(active.fooled)
            stay[leaving] = False
            active.keep(stay)
        return len(active.position) > 0

    def add(self, position: Tensor, images: Tensor) -> None:
        """Note images that fool the net, for the samples at these positions."""
        self.images[position] = images
        self.fooled[position] = True

    def add_better(self, position: Tensor, images: Tensor, fooled: Tensor, score: Tensor) -> None:
        """Note images for the samples at these positions where they fool the net or have a higher score than before."""
        better = fooled | (score > self.score[position])
        self.images[position[better]], self.score[position[better]] = images[better], score[better]
        self.fooled[position[fooled]] = True

    def remaining(self) -> Tensor:
        """The positions of the samples that are not fooled yet. Makes the host wait."""
        return (~self.fooled).nonzero().squeeze(1)


def begin(x: Tensor, target: Target) -> FooledImages:
    """The state before an attack: images that the net gets wrong as they are need none."""
    result = FooledImages(x)
    result.fooled = misclassified(reference_logits(x, target), target.y)
    return result


def runs(result: FooledImages, target: Target, restarts: int, *name: object) -> Iterator[tuple[Tensor, Target, int]]:
    """The runs of an attack until every sample is fooled: positions of the remaining samples, the target for them, with
    random numbers that follow from `name`, and which restart it is."""
    for restart in range(restarts):
        remaining = result.remaining()
        if not len(remaining):
            return
        yield remaining, for_samples(target, remaining, *name, restart), restart


def targeted_runs(
    result: FooledImages, target: Target, classes: Tensor, restarts: int, name: str
) -> Iterator[tuple[Tensor, Target, Tensor, int]]:
    """The runs of a targeted attack towards each of `classes (B, T)`: as `runs`, with the samples' classes."""
    for rank in range(classes.shape[1]):
        for remaining, selected, restart in runs(result, target, restarts, name, rank):
            yield remaining, selected, classes[remaining, rank], restart


def note_fewer_targets(name: str, classes: int, targets: int) -> list[str]:
    """For `notes`: there are fewer classes than the attack would aim at."""
    if classes > targets:
        return []
    return [f"{name}: {classes - 1} target classes, not {targets}: there are {classes} classes"]

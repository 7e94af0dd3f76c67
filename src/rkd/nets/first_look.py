"""A first look at a net that others trained: what its answers to some training images say of it.

**Normalisation.** A weights file rarely says what its net was fed with, and a wrong guess may leave the clean accuracy
good and make the robust one worthless. So `compare` decides only where one of two normalisations is better clearly, by
accuracy and by likelihood, over images of all classes: the right share by `LEAST_LEAD` and by `ERRORS` standard errors
of the paired difference, and the mean log-likelihood by as many.

**Class order.** A net at chance whose answers become right under a permutation was trained on classes in another order.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..core.random import key
from ..core.types import Batch
from ..data.dataset import Split, fetch, permutation
from .modes import running

IMAGES = 512
"""Training images that are looked at."""
LEAST_LEAD = 0.05
ERRORS = 4.0
EXPLAINED = 0.5
"""Share that must be right under a permutation of the classes for it to explain a net at chance."""


@dataclass(frozen=True)
class InputNormalization:
    """What a net normalises [0, 1] images with, and how that is known.

    `choice`: a name, or the numbers. `known`: `file` (its file says it), `told` (the user), `compared` (clearly better
    than the other of data and none), `open` (it makes no clear difference). `shares`: of `images` training images
    right, by choice, where they were compared. `other`: mean and std of the other of data and none, unless a file says.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    choice: str
    known: str
    shares: dict[str, float] | None = None
    images: int = 0
    other: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def table(self) -> dict[str, Any]:
        """As results hold it."""
        return {key: value for key, value in asdict(self).items() if value and key != "other"}


@dataclass(frozen=True)
class Answers:
    """Of a net on images of all classes: `logits (N, K)`, `labels (N,)`."""

    logits: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        return ops.correct(self.logits, self.labels).double()

    @property
    def share(self) -> float:
        return float(self.right.mean())

    @property
    def likelihood(self) -> Tensor:
        """Of the labels, as logarithms; not below -100, which one image cannot outweigh."""
        return -ops.cross_entropy(self.logits.double(), self.labels).clamp(max=100).nan_to_num(100)

    @property
    def chance(self) -> float:
        """The share right of whoever always names the commonest class."""
        return float(self.labels.bincount().max()) / len(self.labels)

    @property
    def at_chance(self) -> bool:
        """Whether three standard errors reach from chance to what is right."""
        return self.share <= self.chance + 3 * (self.chance * (1 - self.chance) / len(self.labels)) ** 0.5

    def order(self) -> list[int] | None:
        """For each class of the data the net's output that answers to it, if that makes a net at chance a good one."""
        classes = self.logits.shape[1]
        confusion = torch.zeros(classes, classes, dtype=torch.long)
        places = (self.labels.cpu(), self.logits.argmax(1).cpu())
        confusion.index_put_(places, torch.ones(len(self.labels), dtype=torch.long), accumulate=True)
        counts = confusion.flatten()
        order, free = [-1] * classes, set(range(classes))
        for place in counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist():
            label, output = divmod(place, classes)
            if order[label] < 0 and output in free:
                order[label] = output
                free.discard(output)
        left = iter(sorted(free))
        order = [next(left) if output < 0 else output for output in order]
        reordered = Answers(self.logits[:, order], self.labels)
        explains = reordered.share >= max(EXPLAINED, self.share + 0.3) and not reordered.at_chance
        return order if explains else None


def representative(split: Split, count: int) -> Tensor:
    """At most `count` positions, each class with its share of them, drawn once and for all `(count,)`."""
    order = permutation(len(split), key("first look"))
    order = order[split.labels[order].argsort(stable=True)]
    count = min(count, len(split))
    return order[torch.arange(count) * len(split) // count]


def first_images(split: Split, device: torch.device | str, count: int = IMAGES) -> Batch:
    """Images of all classes."""
    return fetch(split, representative(split, count), device)


def answers(net: nn.Module, batch: Batch) -> Answers:
    """In eval mode, a few images at a time."""
    with running(net, "eval"), torch.no_grad():
        return Answers(torch.cat([net(x) for x in batch.x.split(64)]), batch.y)


def compare(a: Answers, b: Answers) -> int:
    """1 if `a` is clearly better, -1 if `b` is, 0 if that cannot be told. Where both are at chance because of another
    order of the classes, that order counts."""
    if a.at_chance and b.at_chance and (order := a.order() or b.order()):
        a, b = Answers(a.logits[:, order], a.labels), Answers(b.logits[:, order], b.labels)
    signs = set()
    for lead, least in ((a.right - b.right, LEAST_LEAD), (a.likelihood - b.likelihood, 0.0)):
        mean, error = float(lead.mean()), float(lead.std()) / len(lead) ** 0.5
        signs.add(0 if abs(mean) < max(least, ERRORS * error) else 1 if mean > 0 else -1)
    return signs.pop() if len(signs) == 1 else 0


def doubts(
    said: Answers, who: str, classes: Sequence[str], expected: float | None, section: str, outputs: Sequence[int] = ()
) -> str | None:
    """Why a net should not be trusted, with likely causes; None where nothing speaks against it. `expected`: the share
    right that its own results say; `section`: the table of settings of a teacher; empty: an evaluated file; `outputs`:
    those of the net that are taken for the classes, where they are not taken as they come."""
    n = len(said.labels)
    error = (said.share * (1 - said.share) / n) ** 0.5
    below = expected is not None and said.share < expected - max(0.1, ERRORS * error)
    if not (said.at_chance or below):
        return None
    found = f"{who}: {said.share:.1%} of {n} training images right"
    found += f", where its own results say {expected:.1%}" if below else f", where chance is {said.chance:.1%}"
    order = said.order()
    if order is None:
        usual = said.logits.argmax(1).bincount(minlength=len(classes))
        normalize = f"--set {section}.normalize=none" if section else "--normalize none"
        return (
            f"{found}; {float(usual.max()) / n:.0%} of its answers are {classes[int(usual.argmax())]!r}. Likely "
            f"causes: another normalisation of its images ({normalize}, imagenet, half, ...), another order of its "
            "classes, the wrong file"
        )
    share = Answers(said.logits[:, order], said.labels).share
    order = [outputs[place] for place in order] if outputs else order
    moved = [f"{name!r} is its output {output}" for (place, name), output in zip(enumerate(classes), order, strict=True)
             if place != output]  # fmt: skip
    shown = ", ".join(moved[:8]) + (", ..." if len(moved) > 8 else "")
    text = f"{found}: its classes are in another order, in which {share:.1%} are right: {shown}"
    numbers = ",".join(map(str, order))
    option = f"--set {shlex.quote(f'{section}.classes=[{numbers}]')}" if section else f"--classes {numbers}"
    return f"{text}. Put right by {option}"

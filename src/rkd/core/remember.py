"""A teacher's answers to clean images that never change, computed once.

Without augmentation each epoch shows the teachers the same clean images. Then all of them are asked once, in blocks of
neighbouring positions, and each step looks its batch up.

A net's answer to an image depends in its last bits on the images beside it in the batch (other sums, other kernels).
The blocks are the same whatever the order of training, so a run that was interrupted ends bit for bit as one that was
not; but its last bits are not those of a run without this cache. With augmentation there are too many variants for it
to pay (crops and mirrors of CIFAR: 162 an image), and teachers run in each step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .data import Loader
from .interfaces import Teacher
from .nets import NetTeacher

BLOCK = 256
MOST_BYTES = 512 * 2**20
"""Of the answers of one teacher, on the device of the training."""


class Remembering(NetTeacher):
    """A teacher that is asked about each clean image of a training once, when the first one is wanted."""

    def __init__(self, teacher: NetTeacher, loader: Loader) -> None:
        self.role, self.net, self.searches = teacher.role, teacher.net, teacher.searches
        self._loader = loader
        self._answers: Tensor | None = None
        self._open = True

    def remembered(self, index: Tensor) -> Tensor | None:
        """Logits `(B, K)` of the training images at `index (B,)`; None where they cannot be kept."""
        if self._open and self._answers is None:
            self._answers = self._ask_all()
            self._open = self._answers is not None
        return None if self._answers is None else self._answers[index]

    def _ask_all(self) -> Tensor | None:
        count = len(self._loader.split)
        blocks = list(torch.arange(count).split(BLOCK))
        first = self._ask(blocks[0])
        # A net may draw random numbers in eval mode too.
        if count * first[0].numel() * first.element_size() > MOST_BYTES or not torch.equal(self._ask(blocks[0]), first):
            return None
        return torch.cat([first, *(self._ask(block) for block in blocks[1:])])

    def _ask(self, index: Tensor) -> Tensor:
        with torch.no_grad():
            return self.logits(self._loader.feed.images(index)).detach()


def remembering(teachers: Mapping[str, Teacher], loader: Loader, epochs: int) -> dict[str, Teacher]:
    """The teachers, with a memory where one pays: several epochs of images that never change, in one process."""
    pays = epochs > 1 and not loader.augments and loader.ranks.size == 1
    return {
        role: Remembering(teacher, loader) if pays and type(teacher) is NetTeacher else teacher
        for role, teacher in teachers.items()
    }

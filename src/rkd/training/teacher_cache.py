"""A teacher's answers to clean images that come again, computed once.

Without augmentation each epoch shows the teachers the same images: all of them are asked once, in blocks of
neighbouring positions, and each step looks its batch up (`Remembering`). Augmentations that make finitely many versions
of an image (`variants`) show some of them again: their answers are kept as they come (`RememberingVariants`).

A net's answer to an image depends in its last bits on the batch around it (other sums, other kernels), and a run that
was interrupted must end bit for bit as one that was not, whichever answers it finds kept. So no answer may depend on
which others were there:

- blocks of neighbouring positions are the same whatever the order of training;
- versions are asked about in blocks of one size, filled up, and of a teacher that gives an image the same bits wherever
  it stands in such a block, whatever the other images. Each is tried before: one that draws random numbers, or whose
  images influence one another, is asked in each step, as if there were no memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import Refused
from ..core.random import forked, row_hash
from ..core.types import Batch
from ..data.loader import Loader
from ..evaluation.journal import fingerprint
from ..nets.net import NetTeacher
from .shelf import Answers, Shelf
from .variants import Variants

BLOCK = 256
"""Of images that never change."""


class Remembering(NetTeacher):
    """A teacher that is asked about each clean image of a training once, when the first one is wanted."""

    again = 0.0
    """The share of clean images that are expected to come again."""
    in_memory = 0
    """Bytes of memory that its answers take at most."""

    def __init__(self, teacher: NetTeacher, loader: Loader) -> None:
        self.role, self.net, self.accelerator = teacher.role, teacher.net, teacher.accelerator
        self._loader = loader
        self._answers: Tensor | None = None
        self._open = True

    def remembered(self, batch: Batch) -> Tensor | None:
        """Logits `(B, K)` of the images of `batch`; None where they cannot be kept."""
        if self._open and self._answers is None:
            with forked(None, batch.x.device):  # a net that draws random numbers leaves the student's as they were
                self._answers = self._ask_all()
            self._open = self._answers is not None
        return None if self._answers is None else self._answers[batch.index]

    def _ask_all(self) -> Tensor | None:
        blocks = list(torch.arange(len(self._loader.split)).split(BLOCK))
        first = self._ask(blocks[0])
        # A net may draw random numbers in eval mode too.
        if not torch.equal(self._ask(blocks[0]), first):
            return None
        return torch.cat([first, *(self._ask(block) for block in blocks[1:])])

    def _ask(self, index: Tensor) -> Tensor:
        with torch.no_grad():
            return self.logits(self._loader.prefetcher.images(index)).detach()


class RememberingVariants(NetTeacher):
    """A teacher whose answers are kept for each version of each image that it was asked about."""

    again = 0.0
    """The share of clean images that are expected to come again."""
    in_memory = 0
    """Bytes of memory that its answers take at most."""

    def __init__(self, teacher: NetTeacher, loader: Loader, variants: Variants, block: int, shelf: Shelf) -> None:
        self.role, self.net, self.accelerator = teacher.role, teacher.net, teacher.accelerator
        self.asked = self.found = 0
        """Clean images that the net was asked about, and that were looked up."""
        self._loader, self._variants, self._block, self._shelf = loader, variants, block, shelf
        self._answers: Answers | None = None
        self._open = True

    def remembered(self, batch: Batch) -> Tensor | None:
        """Logits `(B, K)` of the images of `batch`; None where they cannot be kept."""
        if not self._open or batch.variant is None:
            return None
        if self._answers is None:
            try:
                with forked(None, batch.x.device):
                    self._answers = self._begin(batch)
            except Refused as error:
                self._shelf.tell(f"{self._who}: asked in each step: {error}")
                self._open = False
                return None
        places = self._places(batch)
        images = row_hash(batch.x).cpu()
        found, there = self._answers.read(places, images)
        missing = (~there).nonzero().flatten()
        if len(missing):
            found[missing] = self._ask(batch.x[missing.to(batch.x.device)]).cpu()
            self._answers.write(places[missing], images[missing], found[missing])
        self.asked += len(missing)
        self.found += len(places) - len(missing)
        return found.to(batch.x.device)

    def _places(self, batch: Batch) -> Tensor:
        assert batch.variant is not None
        variant, count = batch.variant.cpu(), self._variants.count
        if len(variant) and not 0 <= int(variant.min()) <= int(variant.max()) < count:
            raise Refused(
                f"an augmentation says that it made version {int(variant.max())} of an image, and numbers go from 0 to "
                f"{count - 1}; with --set teacher_cache=off nobody asks it"
            )
        return batch.index.cpu() * count + variant

    def _begin(self, batch: Batch) -> Answers:
        """A place for this very teacher's answers. Raises Refused if they depend on more than the image."""
        # The same images whenever it is tried: a run that goes on must not come to another end than before.
        split = self._loader.split
        x = self._loader.prefetcher.images(torch.arange(self._block) % len(split))
        first = self._ask(x)
        if first.ndim != 2 or first.dtype != torch.float32 or not bool(first.isfinite().all()):
            raise Refused("its logits are not finite float32 numbers")
        if not torch.equal(self._ask(x), first):
            raise Refused("it says something else the second time")
        order = torch.arange(self._block - 1, -1, -1).roll(self._block // 3)
        alone = torch.equal(self._ask(x[order]), first[order])
        # Either half beside other images: what depends on the largest number of a block changes with one of them.
        second = torch.arange(self._block) >= self._block // 2
        for mine in (second, ~second):
            for others in (1 - x, torch.zeros_like(x), torch.ones_like(x)):
                found = self._ask(torch.where(mine.to(x.device)[:, None, None, None], x, others))
                alone &= torch.equal(found[mine], first[mine])
        if not alone:
            raise Refused("its answer to an image depends on the images beside it")
        # The answers stand for what no list of settings has: the code of the net, the machine's way to compute it.
        who = fingerprint(*self.net.state_dict().values(), self._block, first, len(split), self._variants.names)
        salt = int(who[:16], 16)
        rows = self._shelf.rows(self._who, salt, len(split) * self._variants.count, first.shape[1])
        return Answers(rows, first.shape[1], salt)

    @property
    def _who(self) -> str:
        return f"teacher {self.role}"

    def _ask(self, x: Tensor) -> Tensor:
        """Answers in blocks of the one size; a last one is filled up with its last image."""
        found = []
        with torch.no_grad():
            for part in x.split(self._block):
                filled = torch.cat([part, part[-1:].expand(self._block - len(part), *part.shape[1:])])
                found.append(self.logits(filled.contiguous()).detach()[: len(part)])
        return torch.cat(found)

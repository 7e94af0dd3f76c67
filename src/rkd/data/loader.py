"""The training batches of a data set.

A batch is a function of (seed, epoch, position): the order of an epoch is a permutation drawn from (seed, epoch),
an augmentation draws from (seed, epoch, index of the image).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.random import Noise, key
from ..core.traits import declared
from ..core.types import Batch
from ..distributed.ranks import ALONE, Ranks
from .augment import Augment, AugmentTraits, Variants, acts
from .dataset import MixedSplit, Split, permutation
from .prefetch import Prefetcher, send


class Loader:
    """The training batches of each epoch.

    `augments` run in order on whole batches, each in those of the `epochs` in which it acts. The last batch of an epoch
    may be smaller, as in the papers' scripts; a last batch of a single image is left out, since batch norm has no
    variance there. Of several processes each gets its part of the same batches; `batch_size` and `len` are of the whole
    ones.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augments: Sequence[Augment] = (),
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
        workers: int = 0,
        epochs: int = 1,
    ) -> None:
        self.split = split
        self.ranks = ranks
        self.images = len(split.real) if isinstance(split, MixedSplit) else len(split)
        """How many an epoch shows."""
        self.batch_size = min(batch_size, self.images)
        self.seed = seed
        self.augments = list(augments)
        self.epochs = epochs
        self.device = torch.device(device)
        self.prefetcher = Prefetcher(split, self.device, workers)
        self.variants: Variants | None = None
        """Set while batches shall say which version of its image each sample is (`Batch.version`)."""

    def __len__(self) -> int:
        full, rest = divmod(self.images, self.batch_size)
        return full + (rest > 1 or full == 0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""
        order = self._order(key(self.seed, "order", epoch))
        wanted = [
            self._mine(order[number * self.batch_size : (number + 1) * self.batch_size])
            for number in range(start, len(self))
        ]
        for (index, rows), x in zip(wanted, self.prefetcher.batches([index for index, _ in wanted]), strict=True):
            batch = self._augmented(x, index, epoch)
            yield batch if rows is None else batch.select(rows.to(self.device))

    def size(self, number: int) -> int:
        """How many images the whole batch `number` of an epoch has."""
        return min(self.batch_size, self.images - number * self.batch_size)

    def _order(self, seed: int) -> Tensor:
        """The positions of an epoch's images."""
        if isinstance(self.split, MixedSplit):
            return self.split.epoch(self.batch_size, seed)
        return permutation(len(self.split), seed)

    def _mine(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of a whole batch, the images that this process makes, and which of these are its part (None: all)."""
        rows = self.ranks.rows(len(index))
        if self.ranks.size > 1 and any(declared(augment, AugmentTraits).mixes for augment in self.augments):
            # Partners may be anywhere in the batch: make all of it, take this process's part.
            return index, torch.arange(len(index))[rows]
        return index[rows], None

    def batch(self, index: Tensor, epoch: int) -> Batch:
        """The augmented batch of the images at `index`, on the device."""
        return self._augmented(self.prefetcher.images(index), index, epoch)

    def _augmented(self, x: Tensor, index: Tensor, epoch: int) -> Batch:
        batch = Batch(x, send(self.split.labels[index], self.device), send(index, self.device))
        for augment, noise in zip(self.augments, self._noises(batch.index, epoch), strict=True):
            if acts(augment, epoch, self.epochs):
                batch = augment(batch, noise)
        if self.variants is not None:
            # With noises of its own, each of which begins anew, on the CPU: nothing waits for a GPU.
            batch = replace(batch, version=self.variants.versions(self._noises(index, epoch), index))
        return batch

    def _noises(self, index: Tensor, epoch: int) -> list[Noise]:
        """One for each augmentation."""
        return [Noise(key(self.seed, "augment", epoch, place), index) for place in range(len(self.augments))]

"""What attacks that look for the nearest image that fools the net share: the nearest one so far, and what is returned.

Such a search knows no radius and runs all its steps, so that one search serves every radius. An image counts only if
the net itself, in float32, is wrong on it: the nearest ones are shown to it a few times during the search, and where it
is right after all, the one before is the nearest again.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rkd.plugin import Norm, Target, ThreatModel, ops

from ._early_stop import begin, misclassified, reference_logits

_CONFIRMED = 5
"""How often in a search the nearest images are shown to the net itself."""


class Nearest:
    """The nearest images that fooled the net, `images (B, C, H, W)`, and their `distance (B,)` in `norm` from
    `x (B, C, H, W)`, infinite where there is none yet. `steps`: how many images of each sample there will be to note.
    """

    def __init__(self, x: Tensor, target: Target, norm: Norm, steps: int) -> None:
        self.x, self.target, self.norm = x, target, norm
        self.images = x.clone()
        self.distance = x.new_full((len(x),), torch.inf)
        self._confirmed = self.images, self.distance
        self._left, self._every = steps, max(steps // _CONFIRMED, 1)

    def note(self, images: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the images that fool the net by their `logits (B, K)` and are nearer than those before.

        Returns which ones fool it, and how far each one is, `(B,)` both.
        """
        fooled = misclassified(logits, self.target.y)
        far = ops.image_norm(images - self.x, self.norm)
        nearer = fooled & (far < self.distance)
        self.images = ops.where(nearer, images, self.images)
        self.distance = torch.where(nearer, far, self.distance)
        self._left -= 1
        if not self._left % self._every:
            self._confirm()
        return fooled, far

    def _confirm(self) -> None:
        """Show the net what is new since the last time."""
        images, distance = self._confirmed
        rows = (self.distance < distance).nonzero().squeeze(1)
        if len(rows):
            target = self.target.select(rows)
            wrong = misclassified(reference_logits(self.images[rows], target), target.y)
            rows = rows[~wrong]
            self.images[rows], self.distance[rows] = images[rows], distance[rows]
        self._confirmed = self.images.clone(), self.distance.clone()


def search_nearest(
    x: Tensor, target: Target, threat: ThreatModel, bounded: bool, search: Callable[[Tensor, Target, Norm], Nearest]
) -> Tensor:
    """The nearest image of each, where `search` finds one for the samples that the net gets right, given the ball's
    norm; the others stay as they are. `bounded`: those that lie outside the ball, too."""
    result = begin(x, target)
    remaining = result.remaining()
    if len(remaining):
        x = x[remaining]
        near = search(x, target.select(remaining), threat.norm)
        found = near.distance.isfinite()
        if bounded:
            found &= ops.image_norm(near.images - x, threat.norm) <= threat.eps
        result.add(remaining[found], near.images[found])
    return result.images


def annealed(start: float, end: float, done: int, steps: int) -> float:
    """A cosine from `start`, after no step, towards `end`, after all `steps`."""
    return end + (start - end) * (1 + math.cos(math.pi * done / steps)) / 2


def farthest(x: Tensor, norm: Norm) -> Tensor:
    """How far the most distant image in [0, 1] is from each of `x (B, C, H, W)`, `(B,)`."""
    return ops.image_norm(torch.maximum(x, 1 - x), norm)

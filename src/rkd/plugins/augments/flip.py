"""Random mirroring: each image is flipped left to right with probability p.

References: krizhevsky2012imagenet
"""

from dataclasses import dataclass, replace

from torch import Tensor

from rkd.plugin import Batch, ConfigError, Noise, Shape, hookimpl


@dataclass
class Flip:
    """Mirror images left to right.

    Changes `x` alone; further views stay what their makers made of them.

    p: the probability, for each image.
    since, until: the part of the training during which it acts.
    """

    p: float = 0.5
    since: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"flip: p must be a probability from 0 to 1, got {self.p}")

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        chosen = noise.uniform((1, 1, 1)) < self.p  # (B, 1, 1, 1)
        return replace(batch, x=batch.x.flip(-1).where(chosen, batch.x))

    def variants(self, shape: Shape) -> int:
        return 2 if 0 < self.p < 1 else 1

    def variant(self, noise: Noise, shape: Shape) -> Tensor:
        chosen = noise.uniform((1, 1, 1)) < self.p
        return chosen.flatten().long() * (self.variants(shape) - 1)


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"flip": Flip}

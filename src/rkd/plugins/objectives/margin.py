"""How far another class is ahead of the right one, in logits: Carlini and Wagner's f6, untargeted.

    score = min(max_{k != y} z_k(x') - z_y(x'), kappa)

It is positive exactly where the net is fooled, and stops rising once it is fooled by kappa. Unlike
cross-entropy it keeps a gradient where the softmax is saturated. Under soft labels y is the most probable
class.

References: carlini2017towards

Deviations: Carlini and Wagner's kappa is 0 by default (they look for the nearest image); the distillation
scripts (CIARD, Fair-ARD, after Madry's CIFAR-10 challenge) use 50, and so does this. Those scripts write
-max(z_y - max_k z_k + 50, 0): it is this score less 50, with the same gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rkd.plugin import Probe, Step, hookimpl, ops


@dataclass
class Margin:
    """Lead of the best other class over the right one, in logits, up to kappa (Carlini and Wagner)."""

    kappa: float = 50.0

    def __post_init__(self) -> None:
        if not self.kappa >= 0:
            raise ValueError(f"kappa must be at least 0, or the attack stops early, got {self.kappa:g}")

    def __call__(self, step: Step, probe: Probe, x: Tensor) -> Tensor:
        return (-ops.margin(probe(x), step.y)).clamp(max=self.kappa)


@hookimpl
def rkd_objectives() -> dict[str, Callable]:
    return {"margin": Margin}

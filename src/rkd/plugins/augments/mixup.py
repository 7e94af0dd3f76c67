"""mixup: each image and its label become a blend with another image of the batch.

    x' = lam x + (1 - lam) x_partner,   y' = lam y + (1 - lam) y_partner,   lam ~ Beta(alpha, alpha)

Labels become probabilities `(B, K)`, so methods that need class numbers refuse them. The partners form one random ring
through the batch: nobody is blended with itself.

Deviations from the official script (`facebookresearch/mixup-cifar10`, `train.py`): it draws one lam per batch, where
the paper's formula is per pair, and that is done here; its partners are a random permutation, which may leave an
image alone. The symmetric beta distribution follows from two uniform numbers by Bailey's polar method.

References: zhang2018mixup, bailey1994polar
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from rkd.plugin import Batch, Noise, hookimpl, ops

from ._mixing import check_mixing, partners, probabilities, symmetric_beta


@dataclass
class Mixup:
    """Blend each image and its label with those of another; makes soft labels.

    Changes `x` and `y` alone. Further views stay what their makers made of them, unblended: they would no longer fit
    the labels, so no augmentation that makes views should stand beside this one.

    alpha: of Beta(alpha, alpha); small values blend little, 1 is uniform.
    classes: how many there are; a batch of plain labels does not say.
    """

    alpha: float = 1.0
    classes: int | None = None

    mixes: ClassVar = True

    def __post_init__(self) -> None:
        check_mixing("mixup", self.alpha, self.classes)

    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        y = probabilities("mixup", batch.y, self.classes)
        partner = partners(noise)
        draws = noise.uniform((2,))
        lam = symmetric_beta(self.alpha, draws[:, 0], draws[:, 1])
        by_image, by_label = ops.per_image(lam, batch.x), lam[:, None]
        x = by_image * batch.x + (1 - by_image) * batch.x[partner]
        return replace(batch, x=x.clamp(0, 1), y=by_label * y + (1 - by_label) * y[partner])


@hookimpl
def rkd_augments() -> dict[str, object]:
    return {"mixup": Mixup}

"""Auto-PGD: projected gradient ascent with momentum that finds its own step size.

`apgd-ce` raises cross-entropy, `apgd-dlr` the difference of logits ratio (free of the logits' scale, see the
objective `dlr`), `apgd-margin` the plain lead of another class, and `apgd-t` the targeted ratio, towards one class
after another.

    z_i     = P(x_i + s_i * direction(g_i))
    x_{i+1} = P(x_i + 0.75 (z_i - x_i) + 0.25 (x_i - x_{i-1})),     x_1 = z_0

P projects onto the ball and into [0, 1], g_i is the gradient of the sample's loss at x_i, its direction the sign
(Linf) or the gradient of length one (L2). The step s begins at 2 eps. It is halved, and the search goes back to the
best image so far, at a checkpoint where the loss rose in no more than a share `rho` of the steps since the last one,
or where neither s nor the best loss has changed since then. Of N steps the first checkpoint comes after 0.22 N, each
next one 0.03 N sooner than the one before, with never fewer than 0.06 N steps between. The start is random, on the
surface of the ball.

In L1 the search is another one, that of Croce and Hein (2021). The step, from eps down to eps / 10, goes in equal parts
along the signs of the largest slopes, without momentum. How many: two thirds of the values that differ between x and
the best image so far, anew after each 0.04 N steps. Where these became fewer by a twentieth the step is eps again and
the search goes back to the best image, else the step is divided by 1.5. P is the exact projection onto ball and
[0, 1]. A search has three parts of 0.3 N, 0.3 N and 0.4 N steps, in balls of 3 eps, 2 eps and eps, each from the best
image of the one before; the first start is Gaussian noise, projected.

`apgd-t` aims at the classes in the order of their logits, or with `order = "malt"` (Melamed et al. 2024) in the order
of their distance in the linearised net,

    (z_y - z_c) / ‖∇(z_y - z_c)‖_q,     q = 1 in Linf, 2 in L2, infinity in L1

among the 100 classes of the largest logits: one forward and up to 100 backwards an image, once. It matters where there
are more classes than targets.

References: croce2020reliable, croce2021mind, melamed2024malt

These attacks know their loss: they compute it from the target's logits, since they must see after each step whether
the net is fooled, and pay no second forward for it. The objective of the run, `target.score`, is not asked.

A sample leaves once the net is fooled, confirmed by a second forward; a sample that the net gets wrong as it is needs
no attack and is returned unchanged. Where nothing fooled the net, `apgd-ce` and `apgd-dlr` return the image of the
highest loss, `apgd-t`, whose losses differ from class to class, the image itself.

Deviations from the authors' code (pyautoattack 0.2.0), which otherwise settles what the paper leaves open:

- At the first checkpoint the first step is compared with the start, as in the paper; there it is compared with 0.
- There a fooled sample goes on to the last step, and its last fooling image is kept. The result is the same.
- Gradients are scaled before their L2 length is taken, so that those of saturated nets, about 1e-26, still count.
- With K < 10 classes `apgd-t` tries the K - 1 others; there it stops with an error. For the losses with 2 and 3
  classes see `dlr`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ..objectives.dlr import ratio, targeted_ratio
from ._climb import climb, climb_l1
from ._early_stop import (
    MOST_TARGETS,
    FooledImages,
    begin,
    note_fewer_targets,
    runs,
    target_classes,
    targeted_runs,
)
from ._options import CONVEX, attacker, check_search, check_word

Order = Literal["logits", "malt"]

CANDIDATES = 100
"""Among so many classes of the largest logits MALT looks for the nearest ones."""

_DUAL: dict[Norm, Norm] = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
"""The norm of a gradient by which a change of images counts that is measured in a norm."""


@dataclass
class ApgdCe:
    """Auto-PGD on cross-entropy: finds its own step size (Croce and Hein 2020).

    `eps` in units of [0, 1] images; None: the data set's. `rho`: the share of rising steps below which a step size is
    too large. `stop`: let a sample go once the net is fooled; if false, climb on and return the highest loss.
    """

    eps: Schedule | None = None
    steps: int = 100
    norm: Norm | None = None
    restarts: int = 1
    rho: float = 0.75
    stop: bool = True
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(own_objective=True, confirms=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=CONVEX, steps=self.steps, restarts=self.restarts)
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is a share of steps, above 0 and at most 1, got {self.rho:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `steps` + 1 gradients a restart."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=CONVEX)
        result = begin(x, target) if self.stop else FooledImages(x)
        fast = target.low_precision("gradient")
        climbed = climb_l1 if threat.norm == "L1" else climb
        for remaining, selected, _ in runs(result, fast, self.restarts, "apgd", self.traits.objective):
            run = climbed(x[remaining], selected, self.loss, threat, steps=self.steps, rho=self.rho, stop=self.stop)
            result.add_better(remaining, run.images, run.fooled, run.score)
        return result.images

    @staticmethod
    def loss(logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
        return ops.cross_entropy(logits, y)


@dataclass
class ApgdDlr(ApgdCe):
    """Auto-PGD on the difference of logits ratio, free of the logits' scale (Croce and Hein 2020).

    Options as for `apgd-ce`.
    """

    traits: ClassVar = AttackTraits(objective="dlr", own_objective=True, confirms=True)

    @staticmethod
    def loss(logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
        return ratio(logits, y)

    def notes(self, classes: int) -> list[str]:
        """What is done differently for so few classes."""
        return [] if classes > 2 else ["apgd-dlr: with 2 classes the margin of the logits stands in for their ratio"]


@dataclass
class ApgdMargin(ApgdCe):
    """Auto-PGD on the logits' margin, the lead of another class over the right one (after Croce and Hein 2020).

    Options as for `apgd-ce`.
    """

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True, confirms=True)

    @staticmethod
    def loss(logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
        return -ops.margin(logits, y)


@dataclass
class ApgdT:
    """Auto-PGD on the targeted ratio of logits, towards up to 9 classes in turn (Croce and Hein 2020).

    `eps` in units of [0, 1] images; None: the data set's. `targets`: how many classes. `order`: of the classes, by
    their logits, or by their distance in the linearised net (malt: Melamed et al. 2024).
    """

    eps: Schedule | None = None
    steps: int = 100
    targets: int = MOST_TARGETS
    norm: Norm | None = None
    restarts: int = 1
    rho: float = 0.75
    order: Order = "logits"
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="dlr", own_objective=True, confirms=True)

    def __post_init__(self) -> None:
        check_word("order", self.order, *get_args(Order))
        check_search(
            self.eps, self.norm, self.mode, knows=CONVEX, steps=self.steps, restarts=self.restarts, targets=self.targets
        )
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is a share of steps, above 0 and at most 1, got {self.rho:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `steps` + 1 gradients a target."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm, knows=CONVEX)
        result = begin(x, target)
        if self.order == "malt":
            classes = nearest_classes(x, target, self.targets, threat.norm)
        else:
            classes = target_classes(x, target, self.targets)
        target = target.low_precision("gradient")
        climbed = climb_l1 if threat.norm == "L1" else climb
        for remaining, selected, goal, _ in targeted_runs(result, target, classes, self.restarts, "apgd-t"):
            run = climbed(x[remaining], selected, self.loss, threat, steps=self.steps, rho=self.rho, goal=goal)
            result.add(remaining[run.fooled], run.images[run.fooled])
        return result.images

    @staticmethod
    def loss(logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
        assert goal is not None
        return targeted_ratio(logits, y, goal)

    def notes(self, classes: int) -> list[str]:
        """What is done differently for so few classes."""
        notes = note_fewer_targets("apgd-t", classes, self.targets)
        if classes == 3:
            notes.append("apgd-t: with 3 classes the targeted ratio lacks the fourth logit, which is left out")
        if classes == 2:
            notes.append("apgd-t: with 2 classes the margin of the logits stands in for their ratio")
        return notes


def nearest_classes(x: Tensor, target: Target, limit: int, norm: Norm) -> Tensor:
    """The classes of a targeted attack, `(B, min(limit, K - 1))`, by their distance in the linearised net, nearest
    first; equally near ones, and those without a gradient, by falling logit. One forward, up to 100 backwards."""
    others = target_classes(x, target, CANDIDATES)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(x).float()
        lead = logits.gather(1, ops.hard(target.y).unsqueeze(1)) - logits.gather(1, others)
        if not lead.requires_grad:  # a net whose logits do not depend on the images
            return others[:, :limit]
    count = others.shape[1]
    distances = []
    for place in range(count):
        with torch.enable_grad():
            goal = lead[:, place].sum()
        (slope,) = torch.autograd.grad(goal, x, retain_graph=place < count - 1)
        # The squares of a saturated net's slopes are 0 in float32: they are measured by their largest entry first.
        largest = ops.image_norm(slope, "Linf").clamp_(min=ops.TINY)
        length = ops.image_norm(slope / ops.per_image(largest, slope), _DUAL[norm])
        near = lead[:, place].detach() / largest / length.clamp(min=ops.TINY)
        distances.append(torch.where(length > 0, near, torch.inf))
    order = torch.stack(distances, 1).nan_to_num(nan=torch.inf, posinf=torch.inf).argsort(dim=1, stable=True)
    return others.gather(1, order[:, :limit])


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"apgd-ce": ApgdCe, "apgd-dlr": ApgdDlr, "apgd-margin": ApgdMargin, "apgd-t": ApgdT}

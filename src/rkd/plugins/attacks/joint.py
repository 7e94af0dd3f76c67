"""PGD for two nets at once: the image where student and teacher differ most, of each its own.

    max KL(S(x') ‖ T(x'')) + KL(T(x'') ‖ S(x'))      subject to CE(T(x''), y) <= CE(T(x), y)

x' and x'' lie in the ball around x; the constraint keeps x'' an image that the teacher judges at least as well as x. In
each of `steps` steps both move along their own gradients at (x', x''). Where x'' breaks the constraint, it moves so as
to lower CE(T(x''), y) instead, and x' goes on: the switching subgradient method (Polyak, 1967). x' starts from 0.001
randn as `pgd` does, x'' from x, which keeps the constraint. The last x' is returned, and the last x'' that keeps the
constraint is kept as the view `adv-teacher` (of another attacked view: `VIEW-teacher`).

It is the search of CGARD, see there for what of it is published; it needs a teacher, and so has no place in an
evaluation.

References: madry2018towards, polyak1967general
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, at, hookimpl, ops, value_and_grad

from ._options import attacker, check_positive, check_search


@dataclass
class PgdJoint:
    """PGD for student and teacher, an image for each: where they differ most (search of CGARD).

    `eps` and `step_size` in units of [0, 1] images; None: the data set's, the step keeping its share of eps.
    `role`: which teacher; None: the only one, or of several the robust one.
    """

    eps: Schedule | None = None
    step_size: Schedule | None = None
    steps: int = 10
    norm: Norm | None = None
    role: str | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(own_objective=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, steps=self.steps)
        check_positive("step_size", self.step_size)

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `steps` gradients of either net, and one more
        answer of the teacher."""
        threat = attacker(target, self.eps, self.norm)
        if self.step_size is not None:
            threat = replace(threat, step_size=at(self.step_size, target.progress))
        project = ops.projection(x, threat.eps, threat.norm)

        def step(image: Tensor, gradient: Tensor) -> Tensor:
            return project(torch.add(image, ops.steepest(gradient, threat.norm), alpha=threat.step_size))

        images, theirs = project(x + 0.001 * target.noise.normal(x.shape[1:])), x.detach()
        kept = theirs
        most: Tensor | float = torch.inf
        for number in range(self.steps):
            theirs.requires_grad_()
            answer = target.ask(self.role, theirs)
            harm = ops.cross_entropy(answer, target.y)
            holds = harm.detach() <= most
            if number == 0:  # x itself
                most = harm.detach()
            kept = ops.where(holds, theirs.detach(), kept)
            mine, _, gradient = value_and_grad(target, images, partial(difference, other=answer.detach()))
            score = torch.where(holds, difference(answer, mine), -harm)
            slope = torch.autograd.grad(score.sum(), theirs)[0] if score.requires_grad else torch.zeros_like(x)
            images, theirs = step(images, gradient), step(theirs.detach(), slope)
        with torch.no_grad():
            harm = ops.cross_entropy(target.ask(self.role, theirs), target.y)
        target.keep("teacher", ops.where(harm <= most, theirs, kept))
        return images


def difference(z: Tensor, other: Tensor) -> Tensor:
    """KL both ways between softmax(z) and softmax(other), of logits `(B, K)`: `(B,)`."""
    return ops.kl(z, other) + ops.kl(other, z)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"pgd-joint": PgdJoint}

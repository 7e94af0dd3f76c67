"""Carlini and Wagner's L2 attack: the nearest image that fools the net, by gradient descent on distance and margin.

    minimise  ‖x' - x‖_2² + c * max(z_y(x') - max_{k != y} z_k(x') + kappa, 0),      x' = (tanh(w) + 1) / 2

The variable w is free, x' stays in [0, 1]. c is searched for each sample: ten times larger until the net is fooled,
then halfway between the largest that failed and the smallest that succeeded. Adam descends from x in each of the
`searches`, and the nearest image that fooled the net by kappa is kept. The margin of the logits keeps a gradient where
the softmax is saturated: the attack that showed defensive distillation not to be robust.

References: carlini2017towards

It looks for the nearest image in L2 and knows no radius. With `bounded` (default) that image is returned where it lies
inside the data set's ball, and x itself otherwise; in an Linf ball that is a weak attack, for what is near in L2 may
lie far out in Linf. Without it the image is returned however far away it is: the mean distance is the paper's measure,
and an attack that may go anywhere must succeed on nearly every sample. A sample that the net gets wrong as it is,
is returned unchanged. The objective of the run, `target.score`, is not asked.

Deviations from the authors' code: untargeted (the paper aims at each class in turn); 1,000 steps a search, where the
code has 10,000 and the paper's tables were made with them; a sample whose loss has not fallen by 1e-4 of itself in a
tenth of the steps leaves its search, while there the whole batch stops by its sum; the code's last search takes the
largest c again only if there are ten or more, and this has none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Norm, Schedule, Target, hookimpl, ops

from ._early_stop import ActiveSamples, FooledImages, begin, finite_margin
from ._options import attacker, check_search

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
"""Adam's."""


@dataclass
class CwL2:
    """Carlini and Wagner's L2 attack: the nearest image that fools the net (2017).

    `searches` of the constant, beginning at `c`, `steps` of Adam with `lr` each; `kappa`: by how much to fool.
    `bounded`: return what lies inside the ball alone; `eps` in units of [0, 1] images, None: the data set's.
    """

    searches: int = 9
    steps: int = 1000
    c: float = 1e-3
    lr: float = 0.01
    kappa: float = 0.0
    bounded: bool = True
    eps: Schedule | None = None
    norm: Norm | None = None
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(
        objective="margin", own_objective=True, seeks_nearest=True, any_radius=True, measure="L2"
    )

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, searches=self.searches, steps=self.steps)
        for name in ("c", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name):g}")
        if not self.kappa >= 0:
            raise ValueError(f"kappa must be at least 0, got {self.kappa:g}")

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1]. At most `searches` * `steps` gradients."""
        x = x.detach()
        threat = attacker(target, self.eps, self.norm)
        result = begin(x, target)
        remaining = result.remaining()
        if not len(remaining):
            return result.images
        target, x = target.select(remaining), x[remaining]
        near = _Nearest(x)
        c, low, high = (x.new_full((len(x),), value) for value in (self.c, 0.0, torch.inf))
        for _ in range(self.searches):
            fooled = self._descend(x, target, c, near)
            high, low = torch.where(fooled, torch.minimum(high, c), high), torch.where(fooled, low, c)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        if self.bounded:
            near.fooled &= ops.image_norm(near.images - x, threat.norm) <= threat.eps
        result.add(remaining[near.fooled], near.images[near.fooled])
        return result.images

    def _descend(self, x: Tensor, target: Target, c: Tensor, near: _Nearest) -> Tensor:
        """One search with the constants `c`, keeping images that are nearer than before; returns which it fooled."""
        fooled = torch.zeros_like(near.fooled)
        active = _Descent.of(
            target, x, near.images, c=c, w=torch.atanh((2 * x - 1) * 0.999999), mean=torch.zeros_like(x),
            square=torch.zeros_like(x), nearest=near.distance, checked=torch.full_like(c, torch.inf),
        )  # fmt: skip
        every = max(self.steps // 10, 1)
        for done in range(1, self.steps + 1):
            x_adv, distance, advantage, loss, gradient = self._look(active)
            success = advantage > self.kappa
            nearer = success & (distance < active.nearest)
            active.candidate = ops.where(nearer, x_adv, active.candidate)
            active.nearest = torch.where(nearer, distance, active.nearest)
            active.fooled = active.fooled | success
            active.mean = active.mean.mul(_BETA_1).add_(gradient, alpha=1 - _BETA_1)
            active.square = active.square.mul(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
            root = active.square.div(1 - _BETA_2**done).sqrt_().add_(_EPS)
            active.w = torch.addcdiv(active.w, active.mean, root, value=-self.lr / (1 - _BETA_1**done))
            if done == self.steps or not done % every:
                on = (loss < 0.9999 * active.checked) & (done < self.steps)
                off = (~on).nonzero().squeeze(1)
                near.note(active, off)
                fooled[active.position[off]] = active.fooled[off]
                active.checked = loss
                active.keep(on)
                if not len(active.position):
                    break
        return fooled

    def _look(self, active: _Descent) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The image, its squared distance, the advantage of the best other class, the loss, and the gradient by w."""
        w = active.w.detach().requires_grad_()
        with torch.enable_grad():
            x_adv = (torch.tanh(w) + 1) / 2
            distance = (x_adv - active.x).flatten(1).square().sum(1)
            advantage = -finite_margin(active.target.logits(x_adv), active.y)
            loss = distance + active.c * (self.kappa - advantage).clamp(min=0)
            (gradient,) = torch.autograd.grad(loss.sum(), w)
        return x_adv.detach(), distance.detach(), advantage.detach(), loss.detach(), gradient


@dataclass
class _Descent(ActiveSamples):
    """`candidate` is the nearest image so far in all searches, `fooled` whether this search fooled the net."""

    c: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    nearest: Tensor
    checked: Tensor


class _Nearest(FooledImages):
    """The nearest images that fooled the net, with their squared `distance (B,)`."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.distance = x.new_full((len(x),), torch.inf)

    def note(self, active: _Descent, rows: Tensor) -> None:
        place = active.position[rows]
        self.images[place], self.distance[place] = active.candidate[rows], active.nearest[rows]
        self.fooled[place] = self.distance[place].isfinite()


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"cw-l2": CwL2}

"""Jacobian-based saliency map attack (JSMA): two pixels at a time, all the way, until the net says the class aimed at.

    a_j = ∂F_t/∂x_j,   b_j = ∂(sum_{k != t} F_k)/∂x_j
    (p, q) = argmax -(a_p + a_q)(b_p + b_q)     where  a_p + a_q > 0 > b_p + b_q
    x_p, x_q <- clamp(x + theta, 0, 1)

The pair that raises the class t and lowers the others the most is changed by theta; a pixel at its limit is changed no
more. The search ends with success, at `fraction` of the features, or where no pair does both. F are the probabilities
softmax(z / T) (`of = "probabilities"`) or the logits z themselves (`of = "logits"`). The original attack takes the
derivative of the logits, and its authors took that of the probabilities where they attacked nets trained by defensive
distillation (Carlini and Wagner 2017 call the two JSMA-Z and JSMA-F). With probabilities, such a net has no gradient
left in float32 and nothing is found: that is what the defence's figures show.
`temperature` = the net's T, which divides the logits and changes no decision, undoes it (Carlini and Wagner 2016).

References: papernot2016limitations, papernot2016distillation, carlini2016defensive, carlini2017towards

Where the data has values just below 1, such as 253/255, a pair may be spent on them though they hardly change. `full`
is the value from which a feature counts as at its limit: 1 as in the paper, 0.95 leaves such pixels alone. With a
negative theta it is 1 - `full` and below.

This is an attack in L0: it bounds how many features change, not how far. It ignores the data set's ball, and so does
an evaluation, which asks only whether the image in [0, 1] fools the net; never set its number beside those of a ball.
Defaults are Papernot's on MNIST: theta 1, at most 112 of 784 features. Every other class is aimed at (`aim = "all"`),
and of the images that reached theirs the one with the fewest changes is returned, otherwise x; `run` returns all of
them. A feature is a channel of a pixel. The objective of the run, `target.score`, is not asked.

The best pair is found exactly, without looking at all n²/2: both its members lie on the first two Pareto fronts of the
points (a_j, -b_j), for a pair only gains when a member gives way to one that is better in both.

Deviations: Papernot's algorithm does not say what happens where no pair qualifies; here the search ends. Derivatives
are scaled by their largest entry before they are multiplied, so that only those that are exactly 0 count as none.
`scaled = false` multiplies them as they are: in float32 products below 1e-45 are 0, so that derivatives below about
1e-23 count as none long before they are 0 themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from rkd.plugin import AttackTraits, Mode, Target, hookimpl, ops

from ._early_stop import ActiveSamples
from ._options import check_word

Aim = Literal["all", "random", "next"]
Output = Literal["probabilities", "logits"]

_NEVER = -1e30


@dataclass
class Jsma:
    """Jacobian-based saliency map attack: few features, all the way (Papernot et al. 2016). Ignores the ball.

    `theta`: the change of a feature; `fraction`: the largest share of features to change. `aim`: at all other classes,
    one by chance, or the next one. `of`: the output whose derivative is taken, logits divided by `temperature`.
    `scaled`: scale derivatives before they are multiplied; if false, small ones underflow. `full`: from which value
    on a feature counts as at its limit and is changed no more.
    """

    theta: float = 1.0
    fraction: float = 112 / 784
    aim: Aim = "all"
    of: Output = "probabilities"
    temperature: float = 1.0
    scaled: bool = True
    full: float = 1.0
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(objective="margin", own_objective=True)
    bounded: ClassVar[bool] = False
    """The images may lie outside the data set's ball."""

    def __post_init__(self) -> None:
        check_word("aim", self.aim, *get_args(Aim))
        check_word("of", self.of, *get_args(Output))
        check_word("mode", self.mode, *get_args(Mode))
        if self.theta == 0 or not -1 <= self.theta <= 1:
            raise ValueError(f"theta is a change of a feature, from -1 to 1 and not 0, got {self.theta:g}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is a share of features, above 0 and at most 1, got {self.fraction:g}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature:g}")
        if not 0 < self.full <= 1:
            raise ValueError(f"full is the value of a feature at its limit, above 0 and at most 1, got {self.full:g}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], in no ball. A gradient a pair and class aimed at."""
        images, reached, changed = self.run(x, target)
        fewest = changed.masked_fill(~reached, x[0].numel() + 1).argmin(1)
        rows = torch.arange(len(x), device=x.device)
        return ops.where(reached[rows, fewest], images[rows, fewest], x)

    def run(self, x: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """For each of A classes aimed at: images `(B, A, C, H, W)`, whether they reached it, and how many features
        changed, `(B, A)` both. The classes are `aims(x, target)`."""
        x = x.detach()
        aims = self.aims(x, target)
        count = aims.shape[1]
        rows = torch.arange(len(x), device=x.device).repeat_interleave(count)
        images, reached = self._search(x[rows], target.select(rows), aims.flatten())
        images = images.reshape(len(x), count, *x.shape[1:])
        changed = (images != x.unsqueeze(1)).flatten(2).sum(2)
        return images, reached.reshape(len(x), count), changed

    def aims(self, x: Tensor, target: Target) -> Tensor:
        """The classes aimed at, `(B, A)`."""
        with torch.no_grad():
            classes = target.logits(x[:1]).shape[1]
        if self.aim == "all":
            steps = torch.arange(1, classes, device=x.device).unsqueeze(0)
        elif self.aim == "next":
            steps = torch.ones(1, 1, dtype=torch.int64, device=x.device)
        else:
            steps = 1 + (target.noise.uniform((1,)) * (classes - 1)).long().clamp_(max=classes - 2)
        return (ops.hard(target.y).unsqueeze(1) + steps) % classes

    @torch.no_grad()
    def _search(self, x: Tensor, target: Target, goal: Tensor) -> tuple[Tensor, Tensor]:
        images, reached = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        active = _Pairs.of(target, x, x.clone(), goal=goal)
        limit = int(self.fraction * x[0].numel() + 1e-6) // 2
        for done in range(limit + 1):
            reached_goal, a, b = self._saliency(active)
            limits = active.candidate < self.full if self.theta > 0 else active.candidate > 1 - self.full
            sign = 1 if self.theta > 0 else -1
            p, q, exists = best_pair(sign * a, -sign * b, limits.flatten(1), self.scaled)
            off = reached_goal | ~exists if done < limit else torch.ones_like(reached_goal)
            if bool(off.any()):
                images[active.position[off]], reached[active.position[off]] = active.candidate[off], reached_goal[off]
                p, q = p[~off], q[~off]
                active.keep(~off)
                if not len(active.position):
                    break
            pixels = active.candidate.flatten(1)
            pair = torch.stack((p, q), dim=1)
            pixels.scatter_(1, pair, (pixels.gather(1, pair) + self.theta).clamp_(0, 1))
            active.candidate = pixels.view_as(active.candidate)
        return images, reached

    def _saliency(self, active: _Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the class is reached, and the derivatives of its output and of the others' sum, `(B, n)` both."""
        x = active.candidate.detach().requires_grad_()
        with torch.enable_grad():
            logits = active.target.logits(x)
            output = logits.float() / self.temperature
            if self.of == "probabilities":
                output = output.softmax(1)
            goal = output.gather(1, active.goal.unsqueeze(1)).sum()
            others = output.sum() - goal
        reached_goal = logits.argmax(1) == active.goal
        if not goal.requires_grad:  # a net whose logits do not depend on the images
            nothing = torch.zeros_like(x).flatten(1)
            return reached_goal, nothing, nothing
        (a,) = torch.autograd.grad(goal, x, retain_graph=self.of == "logits")
        if self.of == "probabilities":  # they sum to 1
            return reached_goal, a.flatten(1), -a.flatten(1)
        (b,) = torch.autograd.grad(others, x)
        return reached_goal, a.flatten(1), b.flatten(1)


@dataclass
class _Pairs(ActiveSamples):
    goal: Tensor


def best_pair(gain: Tensor, loss: Tensor, free: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The pair of features with the largest (gain_p + gain_q)(loss_p + loss_q), both sums being positive.

    All `(B, n)`; `free`: the features to choose from. Returns p and q `(B,)`, and whether there is such a pair.
    Without `scaled` a pair whose product underflows is none.
    """
    if scaled:  # gradients as small as 1e-25 would give products of 0
        gain, loss = (values / values.abs().amax(1, keepdim=True).clamp_(min=1e-37) for values in (gain, loss))
    gain, loss = gain.masked_fill(~free, _NEVER), loss.masked_fill(~free, _NEVER)
    gain, order = gain.sort(dim=1, descending=True)
    loss = loss.gather(1, order)
    first = _front(loss)
    fronts = first | _front(loss.masked_fill(first, 2 * _NEVER))
    size = max(int(fronts.sum(1).max()), 2)
    places = fronts.to(torch.uint8).topk(size, dim=1).indices
    selected = fronts.gather(1, places)
    gain = gain.gather(1, places).masked_fill(~selected, _NEVER)
    loss = loss.gather(1, places).masked_fill(~selected, _NEVER)
    both_gain, both_loss = gain.unsqueeze(2) + gain.unsqueeze(1), loss.unsqueeze(2) + loss.unsqueeze(1)
    fit = (both_gain > 0) & (both_loss > 0)
    fit &= ~torch.eye(size, dtype=torch.bool, device=gain.device)
    score = both_gain * both_loss
    if not scaled:
        fit &= score > 0
    score.masked_fill_(~fit, -1)
    best = score.flatten(1).argmax(1)
    p, q = (order.gather(1, places.gather(1, place.unsqueeze(1))).squeeze(1) for place in (best // size, best % size))
    return p, q, fit.flatten(1).any(1)


def _front(values: Tensor) -> Tensor:
    """Which values, `(B, n)`, are greater than all before them."""
    before = values.cummax(1).values[:, :-1]
    lowest = torch.full_like(values[:, :1], -torch.inf)
    return values > torch.cat((lowest, before), dim=1)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"jsma": Jsma}

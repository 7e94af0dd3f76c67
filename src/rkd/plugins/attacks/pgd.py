"""Projected gradient descent (PGD): gradient steps from near the image, each brought back into the ball.

Linf steps go along the gradient's sign, L2 steps along the gradient of length one. The last iterate is
returned, as in the papers' scripts, not the best one.

    x_0     = P(x + start noise)
    x_{i+1} = P(x_i + step_size * sign(g_i))          Linf
    x_{i+1} = P(x_i + step_size * g_i / ‖g_i‖_2)      L2,   g_i = gradient of the target's score at x_i
    x_{i+1} = P(x_i + step_size * sign(t_i) / ‖t_i‖_0)        L1,   t_i = the hundredth of g_i's largest entries
    x_{i+1} = P(x_i + s_i * g_i / ‖g_i‖_inf)          L0

In L1 entries of g_i that lead out of [0, 1] are left out, as Maini et al. do (2020); the hundredth is SLIDE's (Tramèr
and Boneh, 2019). In L0 the steps fall from s = 40 step_size / eps to step_size / eps, in equal ratios: long steps find
the pixels that gain the most where they go to 0 or 1, short ones settle what becomes of them. (Croce and Hein, 2019,
keep one step, and a gradient of L1 length one.) In L1 and L0 P is the exact projection onto ball and [0, 1] at once
(Croce and Hein, 2021). `L0` counts pixels, whatever changes in their channels, `L0-values` counts single values.

P projects onto the ball of radius eps around x, then clamps to [0, 1]. For Linf the order makes no
difference (RSLAD's and MTARD's evaluation has the other one): both sets are boxes and x lies in both. For
L2 it does; in the order taken here, torchattacks' and foolbox's, the result lies in both sets as well,
because clamping moves each pixel towards x.

References: madry2018towards, tramer2019adversarial, maini2020adversarial, croce2021mind, croce2019sparse

What official scripts do, and what is done here:

- Start: TRADES, RSLAD, AdaAD and MTARD train from 0.001 * randn (`gaussian`, the default); Madry, ARD and
  the usual evaluations draw uniformly from the ball (`uniform`). These training scripts do not clamp the
  start to [0, 1], so that the first gradient is one outside the images. Here the start goes through P as
  well, and the net sees nothing but images. With `gaussian` the start differs by some thousandths, in pixels
  near 0 and 1, but the signs of the first gradient differ with it, and so the gradients of the weights.
  `start_clip = false` starts from x + noise as it is, for an exact reproduction of these scripts; the steps
  after it go through P as usual.
- RSLAD and MTARD call `loss.backward()` in their evaluation attack, which piles up weight gradients; here
  the gradient is taken by the images alone.
- Mode: TRADES, RSLAD, MTARD and AdaAD attack the net in eval mode; ARD and IAD in train mode (`mode =
  "train"`).
- Repeats: steps of a fixed length along signs come back to where they were, and then go round for good. With
  `leave_repeats` a search in eval mode notes that an image repeats (Brent's algorithm: each iterate is compared with
  that of the last power of two) and leaves the sample where its last step will end: the same image, of fewer queries.
  Not by default: each look makes the host wait for the device, and a search costs other than it says.
- Restarts: of several, each sample keeps one that fools the net, and among equals the highest score, so
  that more restarts are never weaker (MadryLab/robustness compares with `~corr.byte()` and keeps the last).
  The price is two extra forwards a restart; without restarts there is none.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from rkd.plugin import Mode, Norm, Schedule, Target, ThreatModel, at, hookimpl, ops

from ._options import BOXES, attacker, check_positive, check_search, check_word

_LONGEST = 40
"""The first step in L0 is so many times as long as the last one."""

_LOOK = 10
"""After so many steps it lets samples go: each time the host waits for the device."""

Start = Literal["uniform", "gaussian", "none"]
Clip = Literal["each", "end"]


@dataclass
class Pgd:
    """Projected gradient descent: steps along the gradient, kept inside the ball (Madry et al. 2018).

    `eps` and `step_size` in units of [0, 1] images; None: the data set's, the step keeping its share of eps.
    `start`: uniform in the ball, gaussian (0.001 * randn), or none. `restarts` need a random start.
    `clip`: enforce [0, 1] after each step, or in Linf and L2 at the end alone (the net then sees pixels outside).
    `start_clip`: whether the random start is brought into the ball and [0, 1], too.
    `leave_repeats`: in eval mode, leave samples whose iterates repeat: the same images, of fewer queries.
    """

    eps: Schedule | None = None
    step_size: Schedule | None = None
    steps: int = 10
    norm: Norm | None = None
    restarts: int = 1
    start: Start = "gaussian"
    mode: Mode = "eval"
    clip: Clip = "each"
    start_clip: bool = True
    leave_repeats: bool = False

    share: ClassVar[float | None] = None
    """The step size as a share of eps, where none is given. None: the data set's share."""

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, steps=self.steps, restarts=self.restarts)
        check_positive("step_size", self.step_size)
        check_word("start", self.start, *get_args(Start))
        check_word("clip", self.clip, *get_args(Clip))
        if self.restarts > 1 and self.start == "none":
            raise ValueError("restarts need a random start, or all find the same: uniform or gaussian")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`. `steps` gradients a restart."""
        threat = self._threat(target)
        settles = self.leave_repeats and self.mode == "eval"  # elsewhere the gradient may be another the next time
        best = search(x, target, threat, self.steps, self.start, self.clip, self.start_clip, settles)
        if self.restarts == 1:
            return best
        fooled, score = _judge(best, target)
        for _ in range(self.restarts - 1):
            other = search(x, target, threat, self.steps, self.start, self.clip, self.start_clip, settles)
            other_fooled, other_score = _judge(other, target)
            better = (other_fooled & ~fooled) | ((other_fooled == fooled) & (other_score > score))
            best = ops.where(better, other, best)
            score = torch.where(better, other_score, score)
            fooled = fooled | other_fooled
        return best

    def _threat(self, target: Target) -> ThreatModel:
        threat = attacker(target, self.eps, self.norm)
        if self.step_size is not None:
            return replace(threat, step_size=at(self.step_size, target.progress))
        if self.share is not None:
            return replace(threat, step_size=self.share * threat.eps)
        return threat


def search(
    x: Tensor, target: Target, threat: ThreatModel, steps: int, start: Start = "none", clip: Clip = "each",
    start_clip: bool = True, settles: bool = False,
) -> Tensor:  # fmt: skip
    """One ascent of the target's score, `steps` gradients long: the last iterate, in the ball and [0, 1].

    `settles`: an image has the same gradient each time, so that a sample whose iterates repeat may leave."""
    x = x.detach()
    if threat.norm not in BOXES:
        clip = "each"  # a step in a few values would leave [0, 1] far behind
    clamp = clip == "each"
    project = ops.projection(x, threat.eps, threat.norm, clamp=clamp)
    x_adv = x if start == "none" else x + _noise(x, target, threat, start)
    if start_clip and start != "none":
        x_adv = project(x_adv)
    lengths = step_lengths(threat, steps)
    repeats = _Repeats(x_adv, lengths) if settles else None
    for done, length in enumerate(lengths, start=1):
        _, gradient = target.gradient(x_adv)
        if threat.norm not in BOXES:
            gradient = ops.inward(gradient, x_adv)
        x_adv = project(torch.add(x_adv, ops.steepest(gradient, threat.norm), alpha=length))
        if repeats is not None and (stay := repeats.staying(done, x_adv)) is not None:
            x, x_adv, target = x[stay], x_adv[stay], target.select(stay)
            project = ops.projection(x, threat.eps, threat.norm, clamp=clamp)
            if not len(x):
                break
    x_adv = x_adv if repeats is None else repeats.all_with(x_adv)
    return x_adv.clamp(0, 1) if clip == "end" else x_adv


class _Repeats:
    """Which samples' iterates repeat. One that does after `period (B,)` steps (0: none yet) is, whenever the steps that
    are left are a multiple of it, where it will be after them."""

    def __init__(self, start: Tensor, lengths: list[float]) -> None:
        self._steps = len(lengths)
        self._off = len(set(lengths)) > 1
        self._images = start.clone()
        self._position = torch.arange(len(start), device=start.device)
        self._period = torch.zeros_like(self._position)
        self._anchor, self._anchored = start, 0

    def staying(self, done: int, x_adv: Tensor) -> Tensor | None:
        """Told the iterates after `done` steps: the mask of the samples that go on, None where all of them do."""
        if self._off:
            return None
        same = (x_adv == self._anchor).flatten(1).all(1) & (self._period == 0)
        self._period = torch.where(same, done - self._anchored, self._period)
        if done & (done - 1) == 0:
            self._anchor, self._anchored = x_adv, done
        if done % _LOOK or done == self._steps:
            return None
        leave = (self._period > 0) & ((self._steps - done) % self._period.clamp(min=1) == 0)
        if not bool(leave.any()):
            return None
        self._images[self._position[leave]] = x_adv[leave]
        self._anchor, self._period, self._position = (
            part[~leave] for part in (self._anchor, self._period, self._position)
        )
        return ~leave

    def all_with(self, x_adv: Tensor) -> Tensor:
        """The images of those that left and of those that did not."""
        if len(x_adv) == len(self._images):
            return x_adv
        self._images[self._position] = x_adv
        return self._images


def step_lengths(threat: ThreatModel, steps: int) -> list[float]:
    """The length of each step: in L0, where eps counts pixels, a share of the range [0, 1]."""
    if threat.norm not in ops.COUNTS:
        return [threat.step_size] * steps
    last = threat.step_size / max(threat.eps, 1)
    return [last * _LONGEST ** (1 - i / max(steps - 1, 1)) for i in range(steps)]


def _noise(x: Tensor, target: Target, threat: ThreatModel, start: Start) -> Tensor:
    """The start's distance from `x`: each sample's own numbers, whatever the batch."""
    if start == "gaussian":
        return 0.001 * target.noise.normal(x.shape[1:])
    return ops.uniform_in_ball(x, target.noise, threat.eps, threat.norm)


def _judge(x_adv: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Whether each image fools the net, and its score: `(B,)` both."""
    with torch.no_grad():
        return ~ops.correct(target.logits(x_adv), target.y), target.score(x_adv)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"pgd": Pgd}

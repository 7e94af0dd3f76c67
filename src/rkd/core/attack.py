"""The attack's side of a step: the net as an attack sees it, what it may ask, and the gradient that it climbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import Refused
from .interfaces import Objective, Probe, Target
from .random import Noise, forked, key
from .types import Mode, QueryKind, View

if TYPE_CHECKING:  # a step makes targets, and a target asks its step
    from .step import Step


class Patches:
    """Images `x (B, C, H, W)` of which one rectangular patch after another is changed, as Square Attack does.

    This one asks `logits` about whole images each time; an engine may compute what a patch changes alone.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.logits = logits
        self.x = x.clone()
        self.on_ask: Callable[[int], None] = lambda count: None
        """Told of each question, with the number of images."""
        self._patch = self._old = self.x[:, :, :0, :0]

    def ask(self, rows: slice, columns: slice, new: Tensor) -> Tensor:
        """The logits `(B, K)` of the images with `new (B, C, h, w)` at these rows and columns. `settle` comes next."""
        self._patch = self.x[:, :, rows, columns]
        self._old = self._patch.clone()
        self._patch.copy_(new)
        self.on_ask(len(self.x))
        return self._answer(rows, columns)

    def settle(self, better: Tensor) -> None:
        """Images at `better (B,)`, a mask, keep their new patch; the others get the old one back."""
        torch.where(better.view(-1, 1, 1, 1), self._patch, self._old, out=self._patch)

    def select(self, rows: Tensor) -> None:
        """Go on with the images at `rows`, a mask or positions, alone."""
        self.x = self.x[rows]

    def _answer(self, rows: slice, columns: slice) -> Tensor:
        return self.logits(self.x)


class PlainProbe:
    """A function from images to logits as a probe: it is its own reference, and knows no faster way."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self._logits = logits

    def __call__(self, x: Tensor) -> Tensor:
        return self._logits(x)

    def reference(self, x: Tensor) -> Tensor:
        return self._logits(x)

    def low_precision(self, kind: QueryKind) -> Probe:
        return self

    def patches(self, x: Tensor) -> Patches:
        return Patches(self, x)


class WatchedProbe:
    """`probe`, with the logits of each query told to `tell`; those of `reference` are none."""

    def __init__(self, probe: Probe, tell: Callable[[Tensor], None]) -> None:
        self._probe, self._tell = probe, tell

    def __call__(self, x: Tensor) -> Tensor:
        logits = self._probe(x)
        self._tell(logits.detach())
        return logits

    def reference(self, x: Tensor) -> Tensor:
        return self._probe.reference(x)

    def low_precision(self, kind: QueryKind) -> Probe:
        probe = self._probe.low_precision(kind)
        return self if probe is self._probe else WatchedProbe(probe, self._tell)

    def patches(self, x: Tensor) -> Patches:
        return Patches(self, x)  # on whole images, whose logits can be told


class Plain:
    """No acceleration: each net runs as it is. Implements `rkd.core.interfaces.Accelerator`."""

    name = "plain"

    @contextmanager
    def probe(self, net: nn.Module, view: View | None, plain: Callable[[Tensor], Tensor]) -> Iterator[Probe]:
        yield PlainProbe(plain)

    def choices(self) -> list[str]:
        return []


PLAIN = Plain()


class AttackTarget:
    """The attack's side of a step: an objective to raise. Implements `rkd.core.interfaces.Target`."""

    def __init__(self, step: Step, objective: Objective, probe: Probe, noise: Noise) -> None:
        self._step = step
        self._objective = objective
        self._probe = probe
        self.noise = noise
        self.y = step.y
        self.threat = step.threat
        self.progress = step.progress

    def score(self, x: Tensor) -> Tensor:
        return self._objective(self._step, self._probe, x)

    def logits(self, x: Tensor) -> Tensor:
        return self._probe(x)

    def reference(self, x: Tensor) -> Tensor:
        return self._probe.reference(x)

    def low_precision(self, kind: QueryKind) -> AttackTarget:
        probe = self._probe.low_precision(kind)
        return self if probe is self._probe else AttackTarget(self._step, self._objective, probe, self.noise)

    def patches(self, x: Tensor) -> Patches:
        return self._probe.patches(x)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        score = self._objective(self._step, self._probe, x)
        if not score.requires_grad:  # a net whose logits do not depend on the images
            return score, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        return score.detach(), gradient

    def select(self, keep: Tensor) -> AttackTarget:
        if self._step.synchronised and self._step.searching and self._step.searching[1] != "eval":
            raise Refused(
                "with --sync-bn, an attack in train mode must run the same queries in every process, and this one lets "
                "samples leave early: type --set attack.mode=eval, or take --sync-bn out"
            )
        return AttackTarget(self._step.select(keep), self._objective, self._probe, self.noise.select(keep))

    @contextmanager
    def on(self, net: nn.Module, mode: Mode = "eval") -> Iterator[AttackTarget]:
        mode = "frozen" if mode == "train" else mode
        view = self._step.searching[0] if self._step.searching else "adv"
        random = forked(key(self.noise.key, "net"), self.y.device) if mode != "eval" else nullcontext()
        student = self._step.stand_in(net)
        with random, student.attacked(view, mode) as probe:
            step = self._step.on(student, view, mode)
            yield AttackTarget(step, self._objective, step.watched(probe, view), self.noise)


def value_and_grad(target: Target, x: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a value of them, and its gradient by the images, from one forward and one backward.

    `value`: logits `(B, K)` of the images `x (B, C, H, W)` to a number for each, `(B,)`, which depends on its own
    image alone. Returns logits, values and gradient `(B, C, H, W)`, all detached.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(x)
        values = value(logits)
        if not values.requires_grad:  # a net whose logits do not depend on the images
            return logits, values, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return logits.detach(), values.detach(), gradient

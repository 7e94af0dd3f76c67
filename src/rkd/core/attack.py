"""The attack's side of a step: what a search may ask while a view is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import Refused
from .interfaces import Objective, Probe
from .random import Noise, forked, key
from .slope import pieces
from .types import Mode, RoughPart
from .windows import Asked, Windows

if TYPE_CHECKING:  # a step makes targets, and a target asks its step
    from .step import Step


def rough_side(probe: Probe, part: RoughPart) -> Probe:
    """The probe with this part in reduced precision, if it has such a side."""
    side: Callable[[RoughPart], Probe] | None = getattr(probe, "rough", None)
    return side(part) if side else probe


class StepTarget:
    """The attack's side of a step: an objective to raise. Implements `rkd.core.interfaces.Target`."""

    def __init__(self, step: Step, objective: Objective, probe: Probe, noise: Noise) -> None:
        self._step = step
        self._objective = objective
        self._probe = probe
        self.noise = noise
        self.y = step.y
        self.threat = step.threat
        self.progress = step.progress
        self._parts: list[tuple[slice, StepTarget]] = []

    def score(self, x: Tensor) -> Tensor:
        return self._objective(self._step, self._probe, x)

    def logits(self, x: Tensor) -> Tensor:
        return self._probe(x)

    def exact(self, x: Tensor) -> Tensor:
        return getattr(self._probe, "exact", self._probe)(x)

    def rough(self, part: RoughPart = "gradient") -> StepTarget:
        """The same target with this part of what it is asked in reduced precision, if the user asked for that and it
        is faster, else this one. For a search with `confirms = True`. Not every target has such a side."""
        side = rough_side(self._probe, part)
        return self if side is self._probe else StepTarget(self._step, self._objective, side, self.noise)

    @property
    def piece(self) -> int | None:
        """How many images at once suit the engine that runs the net; None: all."""
        return getattr(self._probe, "piece", None)

    def windows(self, x: Tensor) -> Windows:
        """The images `x`, for a search that changes one window of them at a time."""
        maker = getattr(self._probe, "windows", None)
        return maker(x) if maker else Asked(self, x)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self._parts:
            # The first time in one go: what the objective asks of teachers and of other views is then known, and
            # the parts get it from here.
            first = self._gradient(x)
            if self.piece is not None and len(x) > self.piece:
                positions = torch.arange(len(x), device=x.device)
                self._parts = [(rows, self.select(positions[rows])) for rows in pieces(len(x), self.piece)]
            return first
        found = [part._gradient(x[rows]) for rows, part in self._parts]
        score, gradient = (torch.cat(column) for column in zip(*found, strict=True))
        return score, gradient

    def _gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        score = self.score(x)
        if not score.requires_grad:  # a net whose logits do not depend on the images
            return score, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        return score.detach(), gradient

    def select(self, keep: Tensor) -> StepTarget:
        if self._step.synchronised and self._step.searching and self._step.searching[1] != "eval":
            raise Refused(
                "with --sync-bn, an attack in train mode must run the same queries in every process, and this one lets "
                "samples leave early: type --set attack.mode=eval, or take --sync-bn out"
            )
        return StepTarget(self._step.select(keep), self._objective, self._probe, self.noise.select(keep))

    @contextmanager
    def on(self, net: nn.Module, mode: Mode = "eval") -> Iterator[StepTarget]:
        mode = "frozen" if mode == "train" else mode
        view = self._step.searching[0] if self._step.searching else "adv"
        random = forked(key(self.noise.key, "net"), self.y.device) if mode != "eval" else nullcontext()
        student = self._step.stand_in(net)
        with random, student.attacked(view, mode) as probe:
            step = self._step.on(student, view, mode)
            yield StepTarget(step, self._objective, step.watched(probe, view), self.noise)

"""The attack's side of a step: the net as an attack sees it, what it may ask, and the gradient that it climbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import Refused
from .interfaces import Objective, Probe
from .random import Noise, forked, key
from .types import Mode, QueryKind

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
        if isinstance(self.logits, WatchedProbe):
            self.logits = self.logits.select(rows)

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


class WatchedProbe(PlainProbe):
    """`probe` for the samples at `rows (B,)`, with each query told to `tell`, rows and logits; those of `reference` are
    none. The rows are None where an attack asks about another number of images than it has."""

    def __init__(self, probe: Probe, rows: Tensor, tell: Callable[[Tensor | None, Tensor], None]) -> None:
        super().__init__(probe)
        self._probe, self._rows, self._tell = probe, rows, tell

    def __call__(self, x: Tensor) -> Tensor:
        logits = self._probe(x)
        self._tell(self._rows if len(self._rows) == len(logits) else None, logits.detach())
        return logits

    def select(self, keep: Tensor) -> WatchedProbe:
        """The probe for the samples at `keep` (a mask or positions) alone."""
        return WatchedProbe(self._probe, self._rows[keep], self._tell)

    def reference(self, x: Tensor) -> Tensor:
        return self._probe.reference(x)

    def low_precision(self, kind: QueryKind) -> Probe:
        probe = self._probe.low_precision(kind)
        return self if probe is self._probe else WatchedProbe(probe, self._rows, self._tell)


class Target:
    """What an attack attacks: a score to raise, by samples. A step makes one for each search.

    `y` labels `(B,)` or probabilities `(B, K)`; `threat` the ball; `progress` of the training in [0, 1]
    (1 in an evaluation); `noise` the only source of random numbers.
    """

    def __init__(self, step: Step, objective: Objective, probe: Probe, noise: Noise) -> None:
        self._step = step
        self._objective = objective
        self._probe = probe
        self.noise = noise
        self.y = step.y
        self.threat = step.threat
        self.progress = step.progress

    def score(self, x: Tensor) -> Tensor:
        """`(B,)`, to be maximised; differentiable in x."""
        return self._objective(self._step, self._probe, x)

    def logits(self, x: Tensor) -> Tensor:
        """`(B, K)` of the attacked net; differentiable in x."""
        return self._probe(x)

    def reference(self, x: Tensor) -> Tensor:
        """The same of the net itself, in float32. An attack with the trait `confirms` may get its `logits` from a
        faster, less exact copy of the net, and counts nothing before it has asked here."""
        return self._probe.reference(x)

    def low_precision(self, kind: QueryKind) -> Target:
        """The same target with queries of this kind in reduced precision, if the user allows that and it is faster;
        else this one. For an attack with the trait `confirms`."""
        probe = self._probe.low_precision(kind)
        return self if probe is self._probe else Target(self._step, self._objective, probe, self.noise)

    def patches(self, x: Tensor) -> Patches:
        """The images `x (B, C, H, W)`, for an attack that changes one patch of them after another."""
        return self._probe.patches(x)

    def ask(self, role: str | None, x: Tensor) -> Tensor:
        """A teacher's logits `(B, K)`, differentiable in x; None: the only one's, or of several the robust one's."""
        return self._step.ask(self._step.role(role), x)

    def keep(self, name: str, images: Tensor) -> None:
        """Further images that this search finds: those of the view `VIEW-NAME`, where its own are the view VIEW."""
        self._step.keep(name, images)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`score(x)`, detached, and its gradient by x, from one forward and one backward."""
        x = x.detach().requires_grad_()
        score = self._objective(self._step, self._probe, x)
        if not score.requires_grad:  # a net whose logits do not depend on the images
            return score, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        return score.detach(), gradient

    def select(self, keep: Tensor) -> Target:
        """The target for the samples at `keep` (a mask or positions) alone."""
        if self._step.synchronised and self._step.searching and self._step.searching[1] != "eval":
            raise Refused(
                "with --sync-bn, an attack in train mode must run the same queries in every process, and this one lets "
                "samples leave early: type --set attack.mode=eval, or take --sync-bn out"
            )
        probe = self._probe.select(keep) if isinstance(self._probe, WatchedProbe) else self._probe
        return Target(self._step.select(keep), self._objective, probe, self.noise.select(keep))

    @contextmanager
    def on(self, net: nn.Module, mode: Mode = "eval") -> Iterator[Target]:
        """Inside, the same target with another net under attack: labels, ball, objective and random numbers stay.

        The other net is left as it was; its running statistics move in no mode. An evaluation counts what is asked of
        it, too, apart from the questions to the net under attack.
        """
        mode = "frozen" if mode == "train" else mode
        random = forked(key(self.noise.key, "net"), self.y.device) if mode != "eval" else nullcontext()
        with random, self._step.on(net, mode) as (step, probe):
            yield Target(step, self._objective, probe, self.noise)

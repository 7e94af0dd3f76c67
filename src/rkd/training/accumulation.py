"""Gradient accumulation: a batch computed in micro-batches, by one process or several, that is still one batch.

What is a mean over the batch stays one over the whole batch, so the sum of the micro-batches' gradients is the batch's,
but for what mixes samples in the net itself: batch norm sees a micro-batch.

A scheduler sets weights that act in the very step whose losses they come from, and these are known only when every
micro-batch has been looked at. So with schedulers each is looked at twice: once for its terms, without touching the
running statistics, and once for its gradient. Images, searches and teachers' logits are computed once; the price is
one more forward of the student on each of the loss's views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from ..core.errors import Refused
from ..core.objective import loss_terms, scheduled, weighted
from ..core.random import forked, key
from ..core.run import Backward, Run, clip_gradients
from ..core.step import Step
from ..core.types import Batch, Mode, View
from ..distributed.ranks import ALONE, Ranks
from ..distributed.sync_batchnorm import synchronised
from ..nets.memory_format import follow
from .companions import learning

SMALLEST = 2
"""Samples of a micro-batch: of one alone, batch norm has no variance."""


@dataclass
class Accumulation(Backward):
    """Gradients for a batch in micro-batches, shared by processes, and for float16.

    Of several processes each computes the gradient of its own samples; then all hold the whole batch's gradient, loss
    and running statistics.
    """

    micro_batches: int = 1
    """In how many a batch is computed: the memory of one of them, the step of the whole batch."""
    ranks: Ranks = ALONE
    sync_bn: bool = False
    """Batch norm over the samples of all processes, instead of each process's own as in the papers' scripts."""
    scaler: torch.amp.GradScaler | None = None
    """Keeps the weights' gradients within the range of float16."""

    _steps: list[Step] = field(default_factory=list, init=False, repr=False)
    """The micro-batches of the step in hand: a second look at it (AWP) finds their images."""

    def __call__(self, run: Run, step: Step, again: bool = False) -> Tensor:
        samples = self._samples(run, step)
        sizes = self.ranks.sizes(samples)
        step.synchronised = self.sync_bn and self.ranks.size > 1
        if not (again and self._steps):
            self._steps = micro_batches(step, micro_batch_count(min(sizes), self.micro_batches))
        with synchronised(self.ranks) if self.sync_bn and self._divided(samples) else nullcontext():
            if len(self._steps) == 1:
                loss = self._at_once(run, step, samples, again)
            else:
                loss = self._one_by_one(run, step, samples, again)
        nets = [run.student.net, *(companion.net for companion in learning(run.companions).values())]
        return self.ranks.share_step(nets, sizes[self.ranks.rank] / sum(sizes), loss)

    def update(self, run: Run) -> None:
        self._steps = []
        if self.scaler is not None and run.clip_gradient is not None:
            self.scaler.unscale_(run.optimizer)
        clip_gradients(run)
        follow(run.optimizer)
        if self.scaler is None:
            run.optimizer.step()
        else:
            self.scaler.step(run.optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict() if self.scaler else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.scaler:
            self.scaler.load_state_dict(dict(state))

    def _at_once(self, run: Run, step: Step, samples: int, again: bool) -> Tensor:
        alone = self.ranks.size == 1
        if again:
            step = step.fresh()
        terms = loss_terms(run.loss, step)
        if not again:
            run.terms = self._whole_batch(step, detached(terms), samples)
            whole = step if alone else self._gathered(step, [step], samples)
            run.state.knobs.update(scheduled(run.schedulers, whole, terms if alone else run.terms))
        loss = weighted(run.loss, run.state.knobs, step, terms, None if alone else self._summed(samples))
        self._add_gradient(loss)
        return loss.detach()

    def _one_by_one(self, run: Run, step: Step, samples: int, again: bool) -> Tensor:
        if run.schedulers and not again:
            self._look(run, step, samples)
        losses, all_terms = [], []
        for number, part in enumerate(self._steps):
            part = part.fresh()
            terms = self._terms(run, part, number)
            loss = weighted(run.loss, run.state.knobs, part, terms, self._summed(samples))
            self._add_gradient(loss)
            losses.append(loss.detach())
            all_terms.append(detached(terms))
        if not again:
            run.terms = self._whole_batch(step, joined(all_terms), samples)
        return torch.stack(losses).sum()

    def _look(self, run: Run, step: Step, samples: int) -> None:
        """Ask the schedulers, who see the batch as one."""
        looks, all_terms = [], []
        for number, part in enumerate(self._steps):
            look = part.fresh()
            look.again = True
            all_terms.append(detached(self._terms(run, look, number)))
            look.detach()
            looks.append(look)
        terms = self._whole_batch(step, joined(all_terms), samples)
        run.state.knobs.update(scheduled(run.schedulers, self._gathered(step, looks, samples), terms))

    def _terms(self, run: Run, part: Step, number: int) -> Mapping[str, Tensor]:
        # Each look at a micro-batch draws the same numbers from the global generator (dropout).
        with forked(key(part.noise_key, "part", number, self.ranks.rank), part.y.device):
            return loss_terms(run.loss, part)

    def _add_gradient(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _gathered(self, step: Step, parts: Sequence[Step], samples: int) -> GatheredStep:
        return GatheredStep(step, parts, self.ranks if self._divided(samples) else ALONE, self.ranks.sizes(samples))

    def _whole_batch(self, step: Step, terms: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
        """Terms `(B,)` of the whole batch, whichever process computed them, in the batch's order."""
        if not self._divided(samples):
            return terms
        together = self.ranks.gather(torch.stack(list(terms.values()), 1), self.ranks.sizes(samples))
        return dict(zip(terms, together.unbind(1), strict=True))

    def _divided(self, samples: int) -> bool:
        """Whether other processes have other samples of the batch."""
        return self.ranks.size > 1 and self.ranks.shared(samples)

    def _summed(self, samples: int) -> int:
        """How many samples' losses are summed over the processes: a small batch is computed whole by each of them."""
        return sum(self.ranks.sizes(samples))

    def _samples(self, run: Run, step: Step) -> int:
        """The samples of the whole batch. Raises Refused if this process has not its part of them."""
        if self.ranks.size == 1:
            return len(step.batch)
        samples = run.loader.size(run.state.batch)
        expected = self.ranks.sizes(samples)[self.ranks.rank]
        if expected != len(step.batch):
            raise Refused(
                f"process {self.ranks.rank} has {len(step.batch)} images of batch {run.state.batch}, and should have "
                f"{expected}"
            )
        return samples


def micro_batch_count(samples: int, wanted: int) -> int:
    """In how many micro-batches a batch is computed: as many as wanted, as long as none gets fewer than two samples."""
    return max(1, min(wanted, samples // SMALLEST))


def micro_batches(step: Step, count: int) -> list[Step]:
    """The step in `count` micro-batches of equal size, give or take one sample, in order."""
    if count == 1:
        return [step]
    size, more = divmod(len(step.batch), count)
    edges = [number * size + min(number, more) for number in range(count + 1)]
    return [step.select(slice(*pair)) for pair in pairwise(edges)]


class GatheredStep(Step):
    """The step of a whole batch, put together from the steps of its micro-batches and processes.

    A scheduler needs to know of neither: it asks the same questions and gets the same numbers in the same order as if
    one process had done it all at once. Everything is detached. What the micro-batches know is not computed again.
    """

    def __init__(self, step: Step, parts: Sequence[Step], ranks: Ranks = ALONE, sizes: Sequence[int] = ()) -> None:
        super().__init__(
            step.batch, step._student, step._teachers, step._attacks, companions=step._companions, views=step._views,
            targets=step._make_targets, threat=step.threat, knobs=step._knobs, progress=step.progress,
            lr_scale=step.lr_scale, noise_key=step.noise_key, on_query=step._on_query,
        )  # fmt: skip
        self.used = step.used
        self._parts = list(parts)
        self._ranks, self._sizes = ranks, list(sizes)
        if ranks.size > 1:
            self.y = ranks.gather(step.y, self._sizes)
            self._images = {}
            index = ranks.gather(step.batch.index, self._sizes)
            self.batch = cast(Batch, _GatheredBatch(self, index, step.batch.views))

    def image(self, view: View = "clean") -> Tensor:
        if view not in self._images:
            self._images[view] = self._gather(lambda part: part.image(view))
        return self._images[view]

    def _answers(self, name: str, views: Sequence[View], mode: Mode) -> tuple[Tensor, ...]:
        for view in views:
            if (name, view, mode) not in self._logits:
                self._logits[name, view, mode] = self._gather(partial(_answer, name=name, view=view, mode=mode))
        return tuple(self._logits[name, view, mode] for view in views)

    def teacher(self, role: str | None = None, view: View = "clean") -> Tensor:
        role = self._role(role)
        if (role, view) not in self._teacher_logits:
            self._teacher_logits[role, view] = self._gather(lambda part: part.teacher(role, view))
        return self._teacher_logits[role, view]

    def probe_logits(self, view: View = "clean") -> Tensor:
        if (view, "eval") not in self._probed:
            self._probed[view, "eval"] = self._gather(lambda part: part.probe_logits(view))
        return self._probed[view, "eval"]

    def _gather(self, ask: Callable[[Step], Tensor]) -> Tensor:
        return self._ranks.gather(torch.cat([ask(part).detach() for part in self._parts]), self._sizes)


def _answer(part: Step, name: str, view: View, mode: Mode) -> Tensor:
    return part._answers(name, (view,), mode)[0]


class _GatheredBatch:
    """The whole batch of several processes. Images are sent when somebody looks at them, not before."""

    def __init__(self, step: GatheredStep, index: Tensor, views: Iterable[View]) -> None:
        self._step, self._views = step, tuple(views)
        self.y, self.index = step.y, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def x(self) -> Tensor:
        return self._step.image("clean")

    @property
    def views(self) -> dict[View, Tensor]:
        return {view: self._step.image(view) for view in self._views}


def detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms without their graph."""
    return {name: term.detach() for name, term in terms.items()}


def joined(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Terms `(b,)` of micro-batches to terms `(B,)` of the batch."""
    return {name: torch.cat([part[name] for part in terms]) for name in terms[0]}

"""The whole batch as a scheduler sees it, where the batch was computed in parts, or by several processes.

So a scheduler needs to know of neither: it gets the same numbers in the same order as if one process had done it all,
and since each process asks it the same, each gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..core.step import Step
from ..core.types import Batch, Mode, View
from ..distributed.ranks import ALONE, Ranks


class Whole(Step):
    """The step of a whole batch, put together from the steps of its parts: the same questions, the same answers.

    Everything is detached. What the parts know already is not computed again.
    """

    def __init__(self, step: Step, parts: Sequence[Step], ranks: Ranks = ALONE, sizes: Sequence[int] = ()) -> None:
        super().__init__(
            step.batch, step._student, step._teachers, step._attacks, threat=step.threat, knobs=step._knobs,
            progress=step.progress, lr_scale=step.lr_scale, noise_key=step.noise_key, on_query=step._on_query,
        )  # fmt: skip
        self.used = step.used
        self._of = list(parts)
        self._ranks, self._sizes = ranks, list(sizes)
        if ranks.size > 1:
            self.y = ranks.gather(step.y, self._sizes)
            self._images = {}
            self.batch = cast(Batch, _Batch(self, ranks.gather(step.batch.index, self._sizes), step.batch.views))

    def image(self, view: View = "clean") -> Tensor:
        if view not in self._images:
            self._images[view] = self._together(lambda part: part.image(view))
        return self._images[view]

    def students(self, *views: View, mode: Mode = "train") -> tuple[Tensor, ...]:
        for view in views:
            if (view, mode) not in self._student_logits:
                self._student_logits[view, mode] = self._together(partial(Step.student, view=view, mode=mode))
        return tuple(self._student_logits[view, mode] for view in views)

    def teacher(self, role: str | None = None, view: View = "clean") -> Tensor:
        role = self._role(role)
        if (role, view) not in self._teacher_logits:
            self._teacher_logits[role, view] = self._together(lambda part: part.teacher(role, view))
        return self._teacher_logits[role, view]

    def probe_logits(self, view: View = "clean") -> Tensor:
        if (view, "eval") not in self._probed:
            self._probed[view, "eval"] = self._together(lambda part: part.probe_logits(view))
        return self._probed[view, "eval"]

    def _together(self, ask: Callable[[Step], Tensor]) -> Tensor:
        return self._ranks.gather(torch.cat([ask(part).detach() for part in self._of]), self._sizes)


class _Batch:
    """The whole batch of several processes. Images are sent when somebody looks at them, not before."""

    def __init__(self, whole: Whole, index: Tensor, views: Iterable[View]) -> None:
        self._whole, self._views = whole, tuple(views)
        self.y, self.index = whole.y, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def x(self) -> Tensor:
        return self._whole.image("clean")

    @property
    def views(self) -> dict[View, Tensor]:
        return {view: self._whole.image(view) for view in self._views}

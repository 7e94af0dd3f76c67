"""The whole batch as a scheduler sees it, where the batch was computed in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .step import Step
from .types import Mode, View


class Whole(Step):
    """The step of a whole batch, put together from the steps of its parts: the same questions, the same answers.

    Everything is detached. What the parts know already is not computed again.
    """

    def __init__(self, step: Step, parts: Sequence[Step]) -> None:
        super().__init__(
            step.batch, step._student, step._teachers, step._attacks, threat=step.threat, knobs=step._knobs,
            progress=step.progress, lr_scale=step.lr_scale, noise_key=step.noise_key, on_query=step._on_query,
        )  # fmt: skip
        self.used = step.used
        self._of = list(parts)

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
        return torch.cat([ask(part).detach() for part in self._of])

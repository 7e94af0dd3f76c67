"""A loss, a scheduler and a helper that several tests of the training use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rkd import ops
from rkd.core.run import Run
from rkd.core.step import Step


@dataclass
class Clean:
    """Cross-entropy on clean images, twice."""

    weights: dict[str, Any] = field(default_factory=lambda: {"a": 2.0})
    roles: ClassVar = ()
    defaults: ClassVar = {}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        loss = ops.cross_entropy(step.student("clean"), step.y)
        return {"a": loss, "b": 3 * loss}


class Adversarial(Clean):
    def __call__(self, step: Step) -> dict[str, Tensor]:
        adv, clean = step.students("adv", "clean")
        return {"a": ops.cross_entropy(adv, step.y), "b": ops.cross_entropy(clean, step.y)}


@dataclass
class Setter:
    """Sets fixed values and notes what it saw."""

    values: Mapping[str, Any]
    log: list[Any] = field(default_factory=list)

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> Mapping[str, Any]:
        self.log.append({name: term.detach().clone() for name, term in terms.items()})
        return self.values(step) if callable(self.values) else self.values

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in run.student.net.parameters()])

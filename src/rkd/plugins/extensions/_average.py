"""An average of the student's weights, for extensions that evaluate and keep one."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from rkd.plugin import Run, Student


class Average:
    """A copy of the student whose weights go towards those of the one in training."""

    def __init__(self) -> None:
        self._student: Student | None = None
        self._loaded: Mapping[str, Any] | None = None

    def start(self, run: Run) -> None:
        """Training is about to begin, with the student's weights or those of a loaded state."""
        self._student = copy.deepcopy(run.student)
        if self._loaded is not None:
            self._student.net.load_state_dict(self._loaded)

    @property
    def student(self) -> Student:
        assert self._student is not None, "it has been started"
        return self._student

    def deployed(self) -> nn.Module | None:
        """The net to evaluate and to keep; None before the training has begun."""
        return self._student.deployed() if self._student else None

    def state_dict(self) -> dict[str, Any] | None:
        return self._student.net.state_dict() if self._student else None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        self._loaded = state
        if self._student is not None and state is not None:  # amid a training: a rollback
            self._student.net.load_state_dict(state)

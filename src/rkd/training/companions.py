"""Companions: nets beside the student that a loss declares (`rkd.core.traits.Companion`), as students of their own."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, Refused
from ..core.hooks import hookimpl
from ..core.interfaces import Student, Teacher
from ..core.run import Run
from ..core.types import Companion, Mode, Schedule, View, at
from ..nets.net import NetTeacher
from ..nets.student import NetStudent, move_average


class Follower(NetStudent):
    """The moving average of a student's weights. It answers in eval mode, without gradient, whatever it is asked."""

    def __init__(self, student: NetStudent, decay: Schedule) -> None:
        own = copy.deepcopy(student)
        super().__init__(own.net.requires_grad_(False), own.router, own.joint, own.routed)
        self.decay = decay

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> dict[View, Tensor]:
        with torch.no_grad():
            return super().logits(images, "eval")

    def follow(self, net: nn.Module, progress: float) -> None:
        """Move towards `net`, at `progress` of the training."""
        move_average(self.net, net, 1 - at(self.decay, progress))


class Following:
    """The extension that lets all followers of a run follow."""

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        for companion in run.companions.values():
            if isinstance(companion, Follower):
                companion.follow(run.student.net, run.progress)


def make_companions(
    declarations: Mapping[str, Companion], student: NetStudent, teachers: Mapping[str, Teacher],
    new: Callable[[str], NetStudent],
) -> dict[str, Student]:  # fmt: skip
    """The companions of `student` that a loss declares; `new(name)` makes one with weights of its own. Raises
    ConfigError, Refused."""
    check_companions(declarations, teachers)
    return {name: _make(name, one, student, teachers, new) for name, one in declarations.items()}


def check_companions(companions: Mapping[str, Companion], roles: Mapping[str, object]) -> None:
    """Refuse declarations that cannot be meant, with the teachers' `roles` of a run. Raises ConfigError."""
    problems = []
    for name, companion in companions.items():
        if name == "student" or name in roles:
            problems.append(f"a companion cannot be called {name!r}, as another net is")
        if companion.of != "student" and companion.of not in roles:
            given = ", ".join(roles) or "none"
            problems.append(f"the companion {name!r} starts as the teacher {companion.of!r} (teachers given: {given})")
        if companion.follows is not None and companion.of != "student":
            problems.append(f"the companion {name!r} cannot both follow the student and start as a teacher")
    if problems:
        raise ConfigError(problems)


def _make(
    name: str, companion: Companion, student: NetStudent, teachers: Mapping[str, Teacher],
    new: Callable[[str], NetStudent],
) -> NetStudent:  # fmt: skip
    if companion.follows is not None:
        return Follower(student, companion.follows)
    if companion.of == "student":
        return new(name)
    teacher = teachers.get(companion.of)
    if not isinstance(teacher, NetTeacher):
        raise Refused(
            f"the companion {name!r} learns on as the teacher {companion.of!r}, whose weights are not at hand"
        )
    return NetStudent(copy.deepcopy(teacher.net).requires_grad_())


def learning(companions: Mapping[str, Student]) -> dict[str, Student]:
    """Those that learn."""
    return {name: one for name, one in companions.items() if any(p.requires_grad for p in one.net.parameters())}

"""The contract: which protocols a part fulfils."""

from __future__ import annotations

from rkd.core.interfaces import Attack, CachingTeacher, Probe, Scheduler, Stateful, Student, Teacher
from rkd.evaluation.evaluate import HasNotes
from rkd.nets.net import NetTeacher
from rkd.nets.student import NetStudent
from rkd.plugin import PlainProbe
from rkd.registry.hooks import HasParts
from rkd.testing import tiny_net
from rkd.testing.tiny import OneStep


class Noted(OneStep):
    def notes(self, classes: int) -> list[str]:
        return []


class Saved:
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


class Weights(Saved):
    def update(self, step: object, terms: object) -> dict[str, float]:
        return {}


def test_attacks() -> None:
    assert isinstance(OneStep(), Attack) and not isinstance(OneStep(), (HasNotes, HasParts))
    assert isinstance(Noted(), HasNotes)


def test_a_scheduler_has_a_state_and_an_update() -> None:
    assert isinstance(Saved(), Stateful) and not isinstance(Saved(), Scheduler)
    assert isinstance(Weights(), Scheduler) and isinstance(Weights(), Stateful)


def test_nets() -> None:
    net = tiny_net()
    assert isinstance(NetStudent(net), Student) and isinstance(PlainProbe(net), Probe)
    teacher = NetTeacher(net, "robust")
    assert isinstance(teacher, Teacher) and not isinstance(teacher, CachingTeacher)

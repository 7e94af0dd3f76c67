"""What the dry step finds, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import Refused
from rkd.core.hooks import hookimpl
from rkd.core.run import Run
from rkd.core.step import Step
from rkd.core.trainer import fit
from rkd.core.types import DerivedView
from rkd.data.dataset import ArraySplit
from rkd.data.loader import Loader
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.kl import KlAdaptive
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.testing import OneStep, check_trains, tiny_batch, tiny_dataset, tiny_run, tiny_teachers, untouched
from rkd.training.dry_run import FEW, dry_step, with_few_steps

from ..core.losses import Adversarial, Clean, Setter, weights


def test_the_dry_step_leaves_everything_as_it_was() -> None:
    setter = Setter({"weight.a": 1.0})
    run = tiny_run(Adversarial(), attack=OneStep("train"), schedulers={"s": setter}, conversion=AuxiliaryBatchNorm())
    state = copy.deepcopy(run.state_dict())
    with untouched(run.student.net):
        card = dry_step(run)
    assert setter.log == []
    assert run.state.knobs == {}
    assert run.terms == {}
    assert str(run.state_dict()) == str(state)
    assert (card.samples, card.counts["student"].forwards) == (2, 3)


def test_of_a_long_search_some_steps_are_made_and_the_others_counted() -> None:
    run = tiny_run(Adversarial(), attack=Pgd(steps=10_000, restarts=2, start="uniform"))
    run.attacks["adv"] = replace(run.attacks["adv"], objective=KlAdaptive("robust"))
    run.teachers = tiny_teachers(("robust",))
    run.teachers["robust"].net.register_forward_hook(lambda *_: forwards.append(1))
    forwards: list[int] = []
    card = dry_step(run)
    assert len(forwards) < 400
    student, teacher = card.counts["student"], card.counts["teacher robust"]
    # Two images in the loss; of each search the steps, and two forwards by which it is judged.
    assert (student.forwards, student.backwards) == (20_000 + 4 + 2, 20_000 + 2)
    assert (teacher.forwards, teacher.backwards) == (20_000 + 2, 20_000)
    assert run.attacks["adv"].attack.steps == 10_000


def test_two_long_searches_are_counted_each_by_itself() -> None:
    class Both(Adversarial):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {**super().__call__(step), "far": ops.cross_entropy(step.student("far"), step.y)}

    run = tiny_run(Both(), attack=Pgd(steps=137))
    run.attacks["far"] = replace(run.attacks["adv"], attack=Pgd(steps=1000))
    count = dry_step(run).counts["student"]
    assert (count.forwards, count.backwards) == (137 + 1000 + 3, 137 + 1000 + 3)
    trial = with_few_steps(run, "far")
    assert [plan.attack.steps for plan in trial.attacks.values()] == [FEW, FEW // 2]


def test_the_dry_step_changes_no_training() -> None:
    ends = []
    for dry in (False, True):
        run = tiny_run(Adversarial(), attack=OneStep())
        if dry:
            dry_step(run)
        fit(run)
        ends.append(weights(run))
    assert torch.equal(*ends)


def test_copies_of_the_schedulers_listen_to_it() -> None:
    heard = []

    class Listener(Setter):
        @hookimpl
        def rkd_attack_query(self, step: Step, view: str, query: int) -> None:
            heard.append((self, len(step.batch), view, query))

    listener = Listener({})
    dry_step(tiny_run(Adversarial(), attack=OneStep(), schedulers={"s": listener}))
    ((who, *what),) = heard
    assert who is not listener and what == [2, "adv", 0]


def refusal(run: Run) -> str:
    with pytest.raises(Refused) as error:
        dry_step(run)
    return str(error.value)


def test_a_teacher_that_is_never_asked() -> None:
    assert "the teacher 'robust'" in refusal(tiny_run(Clean(), teachers=tiny_teachers(["robust"])))


def test_a_teacher_may_be_used_by_the_attack_alone() -> None:
    from rkd.plugins.objectives.kl import KlTeacher

    check_trains(tiny_run(Adversarial(), attack=OneStep(), objective=KlTeacher(), teachers=tiny_teachers(["robust"])))


def test_an_attack_that_is_never_asked_for() -> None:
    assert "the attack that makes the view 'adv'" in refusal(tiny_run(Clean(), attack=OneStep()))


def test_a_value_that_nobody_reads() -> None:
    assert "'T.robust'" in refusal(tiny_run(Clean(), schedulers={"s": Setter({"T.robust": 2.0})}))


@pytest.mark.parametrize(("name", "value"), [
    ("class_weights", torch.ones(3)), ("class_weights.a", torch.ones(5)), ("class_weights", 1.0), ("weight.a", "x"),
    ("class_weights", torch.tensor([1.0, math.inf, 1.0, 1.0])), ("weight.a", torch.ones(2)), ("weight.a", math.nan),
])  # fmt: skip
def test_weights_that_weigh_nothing(name: str, value) -> None:
    with pytest.raises(Refused, match=f"a scheduler sets '{name}' to .*; expected a "):
        dry_step(tiny_run(Clean(), schedulers={"s": Setter({name: value})}))


@pytest.mark.parametrize(("name", "value"), [
    ("class_weights", torch.ones(4)), ("class_weights.a", torch.zeros(4)), ("weight.a", 2), ("weight.a", torch.ones(1)),
])  # fmt: skip
def test_weights_as_they_should_be(name: str, value) -> None:
    dry_step(tiny_run(Clean(), schedulers={"s": Setter({name: value})}))


def test_norms_that_are_never_trained() -> None:
    run = tiny_run(Clean(), conversion=AuxiliaryBatchNorm())
    assert "batch norm of the view 'adv'" in refusal(run)

    class OnlyAdversarial(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": ops.cross_entropy(step.student("adv"), step.y)}

    run = tiny_run(OnlyAdversarial({}), attack=OneStep(), conversion=AuxiliaryBatchNorm())
    assert "would never be trained" in refusal(run)


def test_a_loss_that_the_student_has_no_part_in() -> None:
    class Constant(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": step.batch.x.flatten(1).mean(1)}

    assert "does not depend on the student" in refusal(tiny_run(Constant({})))


def test_a_loss_that_is_not_finite_at_once() -> None:
    class Nan(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": math.nan * ops.cross_entropy(step.student("clean"), step.y)}

    assert "the loss is nan" in refusal(tiny_run(Nan({})))


def test_a_teacher_that_rules_a_class_out() -> None:
    """There is no divergence from -inf; the message says whose logits these are, and what to give instead."""

    class Distilled(Clean):
        roles = ("robust",)

        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": ops.kl(step.student("clean"), step.teacher())}

    teachers = tiny_teachers(["robust"])
    _mask(teachers["robust"].net)
    said = refusal(tiny_run(Distilled({}), teachers=teachers))
    assert "logits of the teacher 'robust' are NaN or infinite" in said and "low finite logit" in said
    assert "student" not in said


def _mask(net: torch.nn.Module) -> None:
    def masked(module: object, x: object, logits: Tensor) -> Tensor:
        return logits.masked_fill(torch.arange(logits.shape[1]) == 2, -torch.inf)

    net.register_forward_hook(masked)


def test_nets_for_other_data() -> None:
    run = tiny_run(Clean(), data=tiny_dataset(classes=4))
    run.student.net.arch.head = torch.nn.Linear(24, 7)
    assert "the student returned (1, 7)" in refusal(run)
    run = tiny_run(Clean(), teachers=tiny_teachers(["robust"], classes=5))
    assert "the teacher 'robust' returned (1, 5)" in refusal(run)


@pytest.mark.parametrize("bad", [lambda x: x + 0.5, lambda x: x * math.nan])
def test_an_attack_that_leaves_the_images(bad) -> None:
    class Bad:
        mode = "eval"

        def __call__(self, x: Tensor, target: object) -> Tensor:
            return bad(x)

    assert "the view 'adv' is at fault" in refusal(tiny_run(Adversarial(), attack=Bad()))


def test_labels_of_one_image_batches() -> None:
    """A data set of a single image trains nothing, but is no crash of the dry step."""
    batch = tiny_batch()
    run = tiny_run(Clean())
    run.loader = Loader(ArraySplit(batch.x[:3], batch.y[:3]), 8, 0)
    assert dry_step(run, samples=8).samples == 3


def test_a_student_of_another_kind_of_object() -> None:
    run = tiny_run(Adversarial(), attack=OneStep())
    run.student = NetStudent(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)))
    run.optimizer = torch.optim.SGD(run.student.net.parameters(), 0.1)
    check_trains(run)


def test_a_view_may_leave_the_images_only_if_it_says_so() -> None:
    @dataclass
    class Beyond:
        bounded: bool

        @property
        def derived_views(self) -> dict[str, DerivedView]:
            return {"beyond": DerivedView(lambda step: 2 * step.image(), self.bounded)}

        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"ce": ops.cross_entropy(step.student("beyond"), step.y)}

    dry_step(tiny_run(Beyond(False)))
    with pytest.raises(Refused, match="what makes the view 'beyond' is at fault"):
        dry_step(tiny_run(Beyond(True)))

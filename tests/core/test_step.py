"""The Step: lazy, nothing computed twice, and clear words where something is missing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.attack import Target
from rkd.core.errors import Refused
from rkd.core.interfaces import Attack, Student, Teacher
from rkd.core.random import Noise, key
from rkd.core.step import AttackPlan, Step
from rkd.core.types import DerivedView
from rkd.nets.student import NetStudent
from rkd.testing import OneStep, StubTeacher, tiny_batch, tiny_net, tiny_step, tiny_teachers, untouched
from rkd.testing.tiny import cross_entropy
from rkd.training.dry_run import counting


@dataclasses.dataclass
class Counting:
    """An attack that counts its runs and moves every pixel by a little."""

    mode: str = "eval"
    by: float = 0.01
    runs: int = 0

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        self.runs += 1
        return (x + self.by).clamp(0, 1)


def plan(attack: Attack | None = None, objective=cross_entropy) -> AttackPlan:
    return AttackPlan(attack or OneStep(), objective)


# Lazy and memoised


def test_nothing_runs_before_it_is_asked_for() -> None:
    attack, net, teachers = Counting(), tiny_net(), tiny_teachers(["robust"])
    with counting({"student": net}) as counts:
        step = tiny_step(net=net, teachers=teachers, attacks={"adv": plan(attack)})
        assert (attack.runs, counts["student"].forwards, teachers["robust"].asked) == (0, 0, 0)
        step.student("clean")
        step.teacher()
        assert (attack.runs, counts["student"].forwards, teachers["robust"].asked) == (0, 1, 1)


def test_nothing_runs_twice() -> None:
    attack, net, teachers = Counting(), tiny_net(), tiny_teachers(["robust"])
    step = tiny_step(net=net, teachers=teachers, attacks={"adv": plan(attack)})
    with counting({"student": net}) as counts:
        for _ in range(2):
            assert step.image("adv") is step.image("adv")
            assert step.student("adv") is step.student("adv")
            assert step.students("clean", "adv")[1] is step.student("adv")
            assert step.teacher() is step.teacher("robust", "clean")
            step.teacher("robust", "adv")
            assert step.probe_logits() is step.probe_logits("clean")
    assert attack.runs == 1
    assert counts["student"].forwards == 3, "attacked, clean, and the clean answer without gradient"
    assert teachers["robust"].asked == 2


def test_each_mode_has_its_own_logits() -> None:
    step = tiny_step()
    train, evaluated = step.student("clean"), step.student("clean", mode="eval")
    assert not torch.allclose(train, evaluated, atol=1e-3)
    assert step.student("clean", mode="eval") is evaluated


def test_the_order_named_is_the_order_run() -> None:
    for order in (("adv", "clean"), ("clean", "adv")):
        step = tiny_step(attacks={"adv": plan(Counting(by=0.3))})
        seen = []
        step._student.net.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        logits = step.students(*order)
        assert [torch.equal(x, step.image(view)) for x, view in zip(seen, order, strict=True)] == [True, True]
        assert torch.equal(logits[order.index("clean")], step.student("clean"))


def test_attacks_run_before_the_first_train_forward() -> None:
    """`students("clean", "adv")`: the attack must not meet running statistics that the batch has moved already."""
    one = tiny_step(attacks={"adv": plan()}).image("adv")
    step = tiny_step(attacks={"adv": plan()})
    step.students("clean", "adv")
    assert torch.equal(step.image("adv"), one)


def test_students_have_gradients_and_teachers_none() -> None:
    step = tiny_step(roles=("robust",), attacks={"adv": plan()})
    assert step.student("adv").requires_grad
    assert not step.teacher(view="adv").requires_grad
    assert not step.image("adv").requires_grad
    assert not step.probe_logits().requires_grad
    x = step.batch.x.clone().requires_grad_()
    assert step.ask("robust", x).requires_grad, "differentiable in the images"


def test_fresh_computes_student_logits_anew_and_keeps_the_rest() -> None:
    attack, teachers = Counting(), tiny_teachers(["robust"])
    step = tiny_step(teachers=teachers, attacks={"adv": plan(attack)})
    before, images, answer = step.student("adv"), step.image("adv"), step.teacher()
    with torch.no_grad():
        step._student.net.arch.head.bias.add_(1)
    again = step.fresh()
    assert not torch.equal(again.student("adv"), before)
    assert again.image("adv") is images
    assert again.teacher() is answer
    assert step.student("adv") is before
    other = step.fresh()
    other.student("adv")
    other.detach()
    assert not other.student("adv").requires_grad and before.requires_grad
    assert (attack.runs, teachers["robust"].asked) == (1, 1)


def test_the_same_samples_once_more_leave_running_statistics_alone() -> None:
    step = tiny_step()
    norm = next(m for m in step._student.net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    again = step.fresh()
    again.again = True
    before = norm.running_mean.clone()
    logits = again.student()
    assert torch.equal(norm.running_mean, before) and norm.training and logits.requires_grad
    assert torch.equal(step.student(), logits) and not torch.equal(norm.running_mean, before)


def test_views_of_an_augmentation_are_taken_as_they_are() -> None:
    batch = tiny_batch()
    weak = 1 - batch.x
    step = tiny_step(dataclasses.replace(batch, views={"weak": weak}))
    assert step.image("weak") is weak
    with pytest.raises(Refused, match="'weak'"):
        tiny_step(dataclasses.replace(batch, views={"weak": weak}), attacks={"weak": plan()})


def test_what_was_used_is_noted() -> None:
    step = tiny_step(roles=("robust", "clean"), attacks={"adv": plan(), "weak": plan()}, knobs={"T.robust": 3.0})
    step.student("adv")
    step.student("clean", mode="eval")
    step.teacher("robust", "adv")
    assert step.knob("T.robust") == 3.0
    assert step.knob("T.clean", default=2.0) == 2.0
    assert step.used.views == {"adv"}
    assert step.used.roles == {"robust"}
    assert step.used.knobs == {"T.robust", "T.clean"}
    assert step.used.trained == {"adv"}


# Searches


def test_an_attack_in_a_step_leaves_everything_as_it_was() -> None:
    net, teachers = tiny_net().train(), tiny_teachers(["robust"])
    step = tiny_step(net=net, teachers=teachers, attacks={"adv": plan()})
    with untouched(net, teachers["robust"].net):
        step.image("adv")


@pytest.mark.parametrize("mode", ["eval", "frozen", "train"])
def test_dropout_in_a_search_draws_nothing_from_the_global_generator(mode) -> None:
    net = tiny_net()
    net.arch.head = torch.nn.Sequential(torch.nn.Dropout(0.5), net.arch.head)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with untouched(net, buffers=mode != "train"):
            found.append(tiny_step(net=net, attacks={"adv": plan(OneStep(mode))}).image("adv"))
    assert torch.equal(*found)


def test_a_search_where_the_caller_has_no_grad() -> None:
    expected = tiny_step(attacks={"adv": plan()}).image("adv")
    with torch.no_grad():
        assert torch.equal(tiny_step(attacks={"adv": plan()}).image("adv"), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_made_in_inference_mode(soft: bool) -> None:
    """The labels are part of the graph, too."""
    net = tiny_net()
    expected = tiny_step(tiny_batch(soft=soft), net, attacks={"adv": plan()}).image("adv")
    with torch.inference_mode():
        batch = tiny_batch(soft=soft)
        made = dataclasses.replace(batch, x=batch.x.clone(), y=batch.y.clone())
        assert torch.equal(tiny_step(made, net, attacks={"adv": plan()}).image("adv"), expected)
    assert made.y.is_inference() and torch.equal(tiny_step(made, net, attacks={"adv": plan()}).image("adv"), expected)


def test_noise_follows_from_step_view_and_sample() -> None:
    def images(batch=None, noise_key=5, view="adv") -> Tensor:
        return tiny_step(batch, attacks={view: plan()}, noise_key=noise_key).image(view)

    assert torch.equal(images(), images())
    assert not torch.equal(images(), images(noise_key=6))
    assert not torch.equal(images(), images(view="weak"))
    order = torch.tensor([5, 2])
    start = []

    class Start:
        mode = "eval"

        def __call__(self, x: Tensor, target: Target) -> Tensor:
            start.append(target.noise.uniform(x.shape[1:]))
            return x

    for batch in (tiny_batch(), tiny_batch().select(order)):
        tiny_step(batch, attacks={"adv": plan(Start())}).image("adv")
    assert torch.equal(start[0][order], start[1])
    assert torch.equal(start[0], Noise(key(5, "adv"), tiny_batch().index).uniform((3, 8, 8)))


def test_a_net_that_ignores_its_images_has_a_gradient_of_zero() -> None:
    class Deaf(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 4)

    step = tiny_step(net=Deaf(), attacks={"adv": plan()})
    assert step.image("adv").isfinite().all()


@pytest.mark.parametrize("keep", [torch.tensor([6, 1]), torch.arange(8) > 4])
def test_select_is_the_step_of_a_part(keep: Tensor) -> None:
    teachers = tiny_teachers(["robust"])
    step = tiny_step(teachers=teachers, attacks={"adv": plan(), "weak": plan()}, knobs={"a": 2.0}, progress=0.3)
    whole = {view: step.image(view) for view in ("adv",)}
    answer = step.teacher()
    part = step.select(keep)
    assert torch.equal(part.y, step.y[keep])
    assert torch.equal(part.image("adv"), whole["adv"][keep])
    assert torch.equal(part.teacher(), answer[keep])
    assert teachers["robust"].asked == 1, "teachers are not run again"
    assert torch.allclose(part.image("weak"), step.image("weak")[keep], atol=1e-6)
    assert (part.knob("a"), part.progress, part.threat) == (2.0, 0.3, step.threat)
    assert part.used is step.used


def test_listeners_hear_every_forward_of_a_search() -> None:
    heard = []
    step = tiny_step(attacks={"adv": plan()}, on_query=lambda *told: heard.append(told))
    step.students("adv", "clean")
    ((told, view, rows, query, logits),) = heard
    assert (told, view, query) == (step, "adv", 0) and rows.tolist() == list(range(len(step.batch)))
    assert not logits.requires_grad


def test_listeners_hear_which_samples_were_asked_about() -> None:
    """Samples that leave a search left its listeners with logits of unknown rows."""
    heard = []

    class Leaving(Counting):
        def __call__(self, x: Tensor, target: Target) -> Tensor:
            left, rest = torch.arange(len(x)) % 2 == 1, torch.tensor([1])
            target.score(x)
            some = target.select(left)
            some.logits(x[left])
            some.select(rest).low_precision("forward").logits(x[left][rest])
            some.logits(torch.cat([x, x]))
            patches = some.patches(x[left])
            patches.select(rest)
            patches.ask(slice(0, 1), slice(0, 1), x[:1, :, :1, :1])
            return x

    step = tiny_step(attacks={"adv": plan(Leaving())}, on_query=lambda *told: heard.append(told))
    step.image("adv")
    count = len(step.batch)
    odd = list(range(1, count, 2))
    assert [rows if rows is None else rows.tolist() for _, _, rows, _, _ in heard] == [
        list(range(count)), odd, [odd[1]], None, [odd[1]]
    ]  # fmt: skip
    assert [query for *_, query, _ in heard] == [0, 1, 2, 3, 4]


def test_an_objective_may_look_at_another_view() -> None:
    """Its attack runs in its own mode, in the middle of this one, and everything comes back."""

    def away_from_weak(step: Step, probe, x: Tensor) -> Tensor:
        return ops.kl(probe(x), step.probe_logits("weak"))

    net = tiny_net().train()
    step = tiny_step(net=net, attacks={"adv": plan(objective=away_from_weak), "weak": plan(OneStep("frozen"))})
    with untouched(net):
        step.image("adv")
    assert step.used.views == {"adv", "weak"}


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_an_objective_may_not_use_the_students_logits(mode) -> None:
    """They would be memoised without a gradient to the weights, and reach the loss."""

    def wrong(step: Step, probe, x: Tensor) -> Tensor:
        return ops.kl(probe(x), step.student("clean", mode=mode))

    with pytest.raises(Refused, match="probe_logits"):
        tiny_step(attacks={"adv": plan(objective=wrong)}).image("adv")


@pytest.mark.parametrize("ask", [lambda s: s.image("adv"), lambda s: s.teacher("robust", "adv")])
def test_an_objective_may_not_ask_for_its_own_view(ask) -> None:
    def wrong(step: Step, probe, x: Tensor) -> Tensor:
        ask(step)
        return cross_entropy(step, probe, x)

    step = tiny_step(roles=("robust",), attacks={"adv": plan(objective=wrong)})
    with pytest.raises(Refused, match="that very view"):
        step.image("adv")
    assert step.student("clean").requires_grad, "the step can still be used"


def test_a_search_that_failed_may_be_tried_again() -> None:
    class Once:
        mode = "eval"
        left = 1

        def __call__(self, x: Tensor, target: Target) -> Tensor:
            self.left -= 1
            if self.left == 0:
                raise KeyError
            return x

    step = tiny_step(attacks={"adv": plan(Once())})
    with pytest.raises(KeyError):
        step.image("adv")
    assert torch.equal(step.image("adv"), step.batch.x)


@pytest.mark.parametrize(
    "bad",
    [lambda x: x[:2], lambda x: x.double(), lambda x: x.flatten(1), lambda x: None],
    ids=["fewer", "double", "flat", "nothing"],
)
def test_an_attack_that_returns_something_else(bad) -> None:
    class Bad:
        mode = "eval"

        def __call__(self, x: Tensor, target: Target) -> Tensor:
            return bad(x)

    with pytest.raises(Refused, match="Bad returned"):
        tiny_step(attacks={"adv": plan(Bad())}).image("adv")


def test_an_error_of_an_attack_says_whose_it_is() -> None:
    class Broken:
        def __call__(self, x: Tensor, target: Target) -> Tensor:
            raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError) as caught:
        tiny_step(attacks={"adv": plan(Broken())}).image("adv")
    (note,) = caught.value.__notes__
    assert "Broken" in note and "'adv'" in note


# Words


def test_soft_labels_are_refused_where_class_numbers_are_needed() -> None:
    assert torch.equal(tiny_step().labels, tiny_batch().y)
    with pytest.raises(Refused, match="hard labels"):
        _ = tiny_step(tiny_batch(soft=True)).labels


def test_unknown_views() -> None:
    with pytest.raises(Refused, match="--attack NAME"):
        tiny_step().image("adv")
    with pytest.raises(Refused, match=r"'weak' \(there is clean, adv\).*--attack weak=NAME"):
        tiny_step(attacks={"adv": plan()}).image("weak")


def test_unknown_roles() -> None:
    with pytest.raises(Refused, match="a teacher is needed"):
        tiny_step().teacher()
    with pytest.raises(Refused, match=r"several teachers.*robust, clean"):
        tiny_step(roles=("robust", "clean")).teacher()
    with pytest.raises(Refused, match=r"role 'clean'.*given: robust.*--teacher clean=MODEL"):
        tiny_step(roles=("robust",)).teacher("clean")
    with pytest.raises(Refused, match="role 'x'"):
        tiny_step(roles=("robust",)).ask("x", tiny_batch().x)


def test_the_teacher_of_an_objective() -> None:
    assert tiny_step(roles=("clean",)).role() == "clean"
    assert tiny_step(roles=("clean", "robust")).role() == "robust"
    assert tiny_step(roles=("clean", "robust")).role("clean") == "clean"
    with pytest.raises(Refused, match="several"):
        tiny_step(roles=("clean", "other")).role()


def test_the_stubs_are_what_the_core_expects() -> None:
    assert isinstance(StubTeacher("robust"), Teacher)
    assert isinstance(NetStudent(tiny_net()), Student)
    assert isinstance(OneStep(), Attack)


def test_a_view_that_follows_from_others() -> None:
    attack = Counting(by=0.1)
    mirror = DerivedView(lambda step: 2 * step.image() - step.image("adv"), bounded=False)
    step = tiny_step(attacks={"adv": AttackPlan(attack, cross_entropy)}, views={"mirror": mirror})
    images = step.image("mirror")
    torch.testing.assert_close(images, 2 * step.image() - step.image("adv"))
    assert step.image("mirror") is images and attack.runs == 1 and {"mirror", "adv"} <= step.used.views
    part = step.select(slice(2, 5))
    torch.testing.assert_close(part.image("mirror"), images[2:5])
    assert step.student("mirror").requires_grad


def test_views_that_ask_for_themselves_or_have_two_makers() -> None:
    own = DerivedView(lambda step: step.image("own"))
    with pytest.raises(Refused, match="the loss that makes the view 'own' asks for that very view"):
        tiny_step(views={"own": own}).image("own")
    with pytest.raises(Refused, match="an attack and the loss both make the view 'adv'"):
        tiny_step(attacks={"adv": AttackPlan(Counting(by=0.1), cross_entropy)}, views={"adv": own})
    with pytest.raises(Refused, match="an augmentation and the loss both make the view 'weak'"):
        tiny_step(dataclasses.replace(tiny_batch(), views={"weak": tiny_batch().x}), views={"weak": own})
    with pytest.raises(Refused, match=r"what the loss calls 'flat' returned .* images \(8, 3\)"):
        tiny_step(views={"flat": DerivedView(lambda step: step.image()[:, :, 0, 0])}).image("flat")


def test_labels_that_the_loss_teaches() -> None:
    made = []

    def soft(step: Step) -> Tensor:
        made.append(step)
        return (step.teacher() / 2).softmax(1)

    step = tiny_step(roles=("robust",), targets=soft)
    assert step.targets is step.targets and len(made) == 1 and not step.targets.requires_grad
    torch.testing.assert_close(step.targets, (step.teacher() / 2).softmax(1))
    for part in (step.select(torch.tensor([6, 1])), step.select(torch.arange(8) > 4)):
        assert torch.equal(part.targets, step.targets[part.batch.index - 100])
    assert step.fresh().targets is step.targets and len(made) == 1
    assert torch.equal(tiny_step().targets, tiny_step().y), "a loss that declares none teaches the data's"


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(Refused, match=r"the loss made targets \(8,\); expected .* \(8, classes"):
        _ = tiny_step(targets=lambda step: step.y).targets

"""fit(): the order of a step, what the dry step finds, and what a finished training leaves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rkd.core import ops
from rkd.core.errors import DataError, Refused, RkdError, Stopped, TrainingFailed
from rkd.core.hooks import hookimpl
from rkd.core.objective import total
from rkd.core.step import AttackPlan, Step
from rkd.core.trainer import Run, Validation, chosen_net, fit, run_hooks, update
from rkd.data.dataset import ArraySplit
from rkd.data.loader import Loader
from rkd.nets.net import NetStudent
from rkd.plugins.students.aux_bn import AuxiliaryBatchNorm
from rkd.registry.schedules import Drops, Ramp
from rkd.storage.runfolder import RunFolder
from rkd.testing import OneStep, check_trains, tiny_batch, tiny_dataset, tiny_run, tiny_teachers, untouched
from rkd.testing.attack import cross_entropy
from rkd.training.checkpoints import Saving, copied
from rkd.training.dry_run import dry_step


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


def value(run: Run) -> tuple[float, dict[str, float]]:
    loss = total(run, run.step(tiny_batch())).detach()
    return float(loss), {name: float(term.mean()) for name, term in run.terms.items()}


# One step


def test_weights_of_terms() -> None:
    loss, terms = value(tiny_run(Clean()))
    assert loss == pytest.approx(2 * terms["a"] + terms["b"], rel=1e-6)


def test_weights_may_be_schedules() -> None:
    run = tiny_run(Clean({"a": Ramp(0, 1), "b": lambda progress: 10 * progress}), epochs=4)
    for run.epoch in (0, 1, 3):
        loss, terms = value(run)
        assert loss == pytest.approx(run.epoch / 4 * terms["a"] + 10 * run.epoch / 4 * terms["b"], rel=1e-5, abs=1e-7)


def test_a_weight_acts_in_the_very_step() -> None:
    loss, terms = value(tiny_run(Clean(), schedulers={"s": Setter({"weight.a": 0.25, "weight.b": torch.tensor(0.5)})}))
    assert loss == pytest.approx(0.25 * terms["a"] + 0.5 * terms["b"], rel=1e-6)


def test_a_weight_stays_until_it_is_set_again() -> None:
    run = tiny_run(Clean(), schedulers={"s": Setter(lambda step: {"weight.a": 7.0} if not step.progress else {})})
    value(run)
    run.epoch = 1
    loss, terms = value(run)
    assert loss == pytest.approx(7 * terms["a"] + terms["b"], rel=1e-6)


def test_a_knob_acts_in_the_next_step() -> None:
    class Warm(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": ops.cross_entropy(step.student("clean"), step.y) * step.knob("T", 1.0)}

    run = tiny_run(Warm({}), schedulers={"s": Setter({"T": 5.0})})
    first, second = value(run)[0], value(run)[0]
    assert second == pytest.approx(5 * first, rel=1e-5)
    later = tiny_run(Warm({}), schedulers={"s": Setter({"T": 5.0})}, knobs={"T": 2.0})
    step = later.step(tiny_batch())
    loss = float(total(later, step).detach())
    assert loss == pytest.approx(2 * first, rel=1e-5)
    again = float(later.loss(step)["a"].mean().detach())
    assert again == pytest.approx(loss), "also not for a second look at the same step, as AWP takes one"


def test_schedulers_see_the_terms_once_and_in_order() -> None:
    order: list[str] = []

    class Named(Setter):
        def update(self, step: Step, terms: Mapping[str, Tensor]) -> Mapping[str, Any]:
            order.append(self.log[0])
            return {}

    run = tiny_run(Clean(), schedulers={name: Named({}, [name]) for name in ("z", "a", "m")})
    value(run)
    assert order == ["z", "a", "m"]


def test_terms_are_given_to_schedulers_before_weights_and_averages() -> None:
    setter = Setter({"weight.a": 100.0})
    run = tiny_run(Clean(), schedulers={"s": setter})
    _, terms = value(run)
    assert setter.log[0]["a"].shape == (8,)
    assert float(setter.log[0]["a"].mean()) == pytest.approx(terms["a"])


def test_two_schedulers_that_set_one_value() -> None:
    run = tiny_run(Clean(), schedulers={"one": Setter({"weight.a": 1.0}), "two": Setter({"weight.a": 2.0})})
    with pytest.raises(Refused, match=r"'one' and 'two' both set 'weight.a'"):
        value(run)


@pytest.mark.parametrize("name", ["weight.c", "class_weights.c"])
def test_a_scheduler_that_names_an_unknown_term(name: str) -> None:
    with pytest.raises(Refused, match=r"no term 'c' \(its terms: a, b\)"):
        value(tiny_run(Clean(), schedulers={"s": Setter({name: 1.0})}))


def test_class_weights() -> None:
    """Of all terms, and of one; under soft labels the mean that the labels give."""
    values, only_b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 0.0, 0.0, 0.0])
    run = tiny_run(Clean({}), schedulers={"s": Setter({"class_weights": values, "class_weights.b": only_b})})
    batch = tiny_batch()
    loss = float(total(run, run.step(batch)).detach())
    expected = 0.0
    for label, a, b in zip(batch.y.tolist(), run.terms["a"].tolist(), run.terms["b"].tolist(), strict=True):
        expected += (values[label] * a + values[label] * only_b[label] * b).item() / 8
    assert loss == pytest.approx(expected, rel=1e-5)
    soft = tiny_batch(soft=True)
    loss = float(total(run, run.step(soft)).detach())
    expected = float(
        (soft.y @ values * run.terms["a"]).mean() + (soft.y @ values * (soft.y @ only_b) * run.terms["b"]).mean()
    )
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [lambda t: t.mean(), lambda t: t[:3], lambda t: t.unsqueeze(1)])
def test_terms_hold_one_value_per_sample(shape) -> None:
    class Bad(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": shape(ops.cross_entropy(step.student("clean"), step.y))}

    with pytest.raises(Refused, match="one value per sample"):
        value(tiny_run(Bad()))


def test_a_loss_without_terms() -> None:
    class Empty(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {}

    with pytest.raises(Refused, match="no terms"):
        value(tiny_run(Empty()))


def test_update_is_sgd_by_hand() -> None:
    """The weights after one step, from the gradient of the weighted loss."""
    run = tiny_run(Clean(), lr=0.1)
    twin = copy.deepcopy(run.student)
    batch = tiny_batch()
    before = weights(run)
    update(run, batch)
    loss = 5 * ops.cross_entropy(twin.logits({"clean": batch.x}, "train")["clean"], batch.y).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(twin.net.parameters()))])
    assert torch.allclose(weights(run), before - 0.1 * gradient, atol=1e-6)


def test_gradients_are_clipped() -> None:
    run = tiny_run(Clean({"a": 1000.0}), lr=1.0, clip_gradient=0.01)
    before = weights(run)
    update(run, tiny_batch())
    assert float((weights(run) - before).norm()) == pytest.approx(0.01, rel=1e-3)


# A whole training


def test_fit_is_a_plain_loop() -> None:
    """Two epochs, by hand: the same batches, the same learning rates, the same weights."""
    run = tiny_run(Clean(), epochs=2, lr=0.2, lr_schedule=Ramp(1, 0))
    net = copy.deepcopy(run.student)
    optimizer = torch.optim.SGD(net.net.parameters(), 0.2, momentum=0.9)
    for epoch in range(2):
        for number, batch in enumerate(run.loader.batches(epoch)):
            optimizer.param_groups[0]["lr"] = 0.2 * (1 - (epoch + number / 2) / 2)
            optimizer.zero_grad()
            (5 * ops.cross_entropy(net.logits({"clean": batch.x}, "train")["clean"], batch.y).mean()).backward()
            optimizer.step()
    fit(run)
    assert torch.allclose(weights(run), torch.cat([p.detach().flatten() for p in net.net.parameters()]), atol=1e-6)


def test_fit_touches_no_random_state_and_is_repeatable() -> None:
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = tiny_run(Adversarial(), attack=OneStep("train"), epochs=2)
        run.student.net.arch.head = torch.nn.Sequential(torch.nn.Dropout(0.3), run.student.net.arch.head)
        with untouched():
            fit(run)
        ends.append(weights(run))
    assert torch.equal(*ends)


def test_history() -> None:
    run = tiny_run(
        Clean(), epochs=3, lr=0.1, lr_schedule=Drops(1.0, (2 / 3,)),
        schedulers={"s": Setter({"weight.b": torch.tensor(0.5), "T.robust": 2.0, "class_weights": torch.ones(4)})},
    )  # fmt: skip
    fit(run)
    assert [line["epoch"] for line in run.history] == [0, 1, 2]
    assert [line["lr"] for line in run.history] == pytest.approx([0.1, 0.1, 0.01])
    for line in run.history:
        assert line["loss"] == pytest.approx(2 * line["loss.a"] + 0.5 * line["loss.b"], rel=1e-4)
        assert (line["weight.a"], line["weight.b"], line["T.robust"]) == (2.0, 0.5, 2.0)
        assert "class_weights" not in line, "only single numbers"
        assert all(isinstance(value, (int, float)) for value in line.values())


def test_lr_scale_is_the_schedules() -> None:
    seen = []
    setter = Setter(lambda step: seen.append((step.progress, step.lr_scale)) or {})
    run = tiny_run(Clean(), epochs=2, lr=0.3, lr_schedule=Drops(1.0, (0.5,)), schedulers={"s": setter})
    fit(run)
    assert seen == [(0.0, 1.0), (0.25, 1.0), (0.5, 0.1), (0.75, 0.1)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(bad: float) -> None:
    class Breaks(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            factor = bad if step.progress > 0.4 else 1.0
            return {"a": factor * ops.cross_entropy(step.student("clean"), step.y)}

    run = tiny_run(Breaks({}), epochs=2)
    with pytest.raises(TrainingFailed, match=r"epoch 1, batch 0.*a = .*--lr"):
        fit(run)


def test_weights_that_are_not_finite_stop_the_training() -> None:
    """sqrt at 0 has an infinite gradient and a finite value: the last step of a training would go unnoticed."""

    class Root(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            z = step.student("clean")
            return {"a": (z * 0).sum(1).sqrt() if step.progress == since else ops.cross_entropy(z, step.y)}

    since = 0.0
    assert "a gradient is not finite" in refusal(tiny_run(Root({})))
    since = 0.5
    with pytest.raises(TrainingFailed, match="a weight is no longer finite after epoch 0"):
        fit(tiny_run(Root({}), epochs=1))


def test_hooks_are_called_in_order() -> None:
    calls = []

    class Listener:
        @hookimpl
        def rkd_run_start(self, run):
            calls.append("start")

        @hookimpl
        def rkd_attack_query(self, step, view, logits):
            calls.append(f"query {view}")

        @hookimpl
        def rkd_after_update(self, run):
            calls.append("update")

        @hookimpl
        def rkd_epoch_end(self, run, metrics):
            calls.append(f"epoch {metrics['epoch']}")

    fit(tiny_run(Adversarial(), attack=OneStep(), extensions={"it": Listener()}))
    assert calls == ["start", "query adv", "update", "query adv", "update", "epoch 0"]


def test_an_extension_may_take_over_the_backward() -> None:
    class Half:
        @hookimpl
        def rkd_backward(self, step):
            loss = total(run, step) / 2
            loss.backward()
            run.loss_value = loss.detach()
            return True

    run = tiny_run(Clean(), extensions={"half": Half()}, lr=0.1)
    plain = tiny_run(Clean(), lr=0.05)
    update(run, tiny_batch())
    update(plain, tiny_batch())
    assert torch.allclose(weights(run), weights(plain), atol=1e-6)


def test_a_hook_that_does_not_exist() -> None:
    class Misspelt:
        @hookimpl
        def rkd_epoch_ends(self, run): ...

    class WrongArgument:
        @hookimpl
        def rkd_epoch_end(self, runs): ...

    for extension in (Misspelt(), WrongArgument()):
        with pytest.raises(RkdError, match="extension it"):
            run_hooks({"it": extension})


# Choosing weights


@dataclass
class Averaged:
    """Stands in for EMA: the net to evaluate is another one."""

    net: torch.nn.Module

    @hookimpl
    def rkd_eval_net(self, run):
        return self.net


def validation(run: Run, select: str = "w-robust", every: int = 1) -> Validation:
    return Validation(run.data.test, AttackPlan(OneStep(), cross_entropy), every, None, select)


def test_the_best_epoch_is_kept() -> None:
    run = tiny_run(Clean(), epochs=4, lr=0.3)
    run.validation = validation(run, "clean")
    seen = []

    class Look:
        @hookimpl
        def rkd_epoch_end(self, run, metrics):
            seen.append((metrics["val.clean"], weights(run)))

    run.hooks = run_hooks({"look": Look()})
    fit(run)
    scores = [score for score, _ in seen]
    best = max(place for place, score in enumerate(scores) if score == max(scores))
    assert run.best == {"epoch": best, "score": scores[best]}, "later epochs win ties"
    kept = torch.cat([p.flatten() for p in chosen_net(run).parameters()])
    assert torch.equal(kept, seen[best][1])
    assert not any(p.requires_grad for p in chosen_net(run).parameters())
    assert torch.equal(weights(run), seen[-1][1]), "the student itself is left at the last epoch"


def test_the_last_epoch_can_be_asked_for() -> None:
    run = tiny_run(Clean(), epochs=2)
    run.validation = validation(run, "last")
    fit(run)
    assert run.best is None
    assert torch.equal(torch.cat([p.flatten() for p in chosen_net(run).parameters()]), weights(run))


@pytest.mark.parametrize("select", ["w-robust", "robust", "clean"])
def test_what_chooses(select: str) -> None:
    run = tiny_run(Clean(), epochs=1)
    run.validation = validation(run, select)
    fit(run)
    line = run.history[0]
    robust, clean = line["val.robust"], line["val.clean"]
    assert run.best["score"] == {"w-robust": (clean + robust) / 2, "robust": robust, "clean": clean}[select]


def test_validation_every_few_epochs_and_at_the_end() -> None:
    run = tiny_run(Clean(), epochs=5)
    run.validation = validation(run, every=2)
    fit(run)
    assert [("val.clean" in line) for line in run.history] == [False, True, False, True, True]


def test_an_extension_gives_the_net_to_keep() -> None:
    other = copy.deepcopy(tiny_run(Clean()).student.net)
    with torch.no_grad():
        other.arch.head.bias.add_(1)
    run = tiny_run(Clean(), extensions={"average": Averaged(other)})
    fit(run)
    assert torch.equal(chosen_net(run).arch.head.bias, other.arch.head.bias)


def test_auxiliary_norms_are_not_kept() -> None:
    run = tiny_run(Adversarial(), attack=OneStep(), conversion=AuxiliaryBatchNorm())
    run.validation = validation(run)
    fit(run)
    assert not any(".aux." in name for name in chosen_net(run).state_dict())


# Going on


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_training_goes_on_exactly(cut: int, tmp_path) -> None:
    """Stopped after `cut` of four epochs and continued in another process's objects: the same bits."""

    class Stop(Exception):
        pass

    class Stopper:
        @hookimpl
        def rkd_run_start(self, run):
            self.epochs = 0

        @hookimpl
        def rkd_after_update(self, run):
            if run.epoch == cut:
                raise Stop

    def make(folder, extensions=None) -> Run:
        from rkd.plugins.schedulers.anl import AdaptiveNormalization

        run = tiny_run(
            Adversarial(), attack=OneStep("train"), epochs=4, lr=0.2, lr_schedule=Ramp(1, 0.1),
            schedulers={"anl": AdaptiveNormalization(0.3)}, extensions=extensions, folder=folder,
        )  # fmt: skip
        run.validation = validation(run)
        return run

    whole = make(RunFolder.create(tmp_path / "whole"))
    fit(whole)
    folder = RunFolder.create(tmp_path / "parts")
    with pytest.raises(Stop):
        fit(make(folder, {"stop": Stopper()}))
    rest = make(folder)
    rest.load_state(folder.load_state(folder.last))
    assert rest.epoch == cut
    fit(rest)
    assert torch.equal(weights(rest), weights(whole))
    assert torch.equal(*(torch.cat([p.flatten() for p in chosen_net(r).parameters()]) for r in (rest, whole)))
    for name, buffer in rest.student.net.named_buffers():
        assert torch.equal(buffer, dict(whole.student.net.named_buffers())[name])
    assert rest.best == whole.best
    drop = {"seconds"}
    kept = [{k: v for k, v in line.items() if k not in drop} for line in folder.history()]
    assert kept == [{k: v for k, v in line.items() if k not in drop} for line in whole.folder.history()]


@dataclass
class StopAt:
    """Asks for a stop when it is asked for the `at`-th time, and counts."""

    at: int
    asked: int = 0

    @hookimpl
    def rkd_stop(self, run):
        self.asked += 1
        return self.asked == self.at or None


def resumable(folder: RunFolder | None, stop: StopAt, on_nan: str = "stop", loss: Any = None) -> Run:
    """Two epochs of three steps with everything that has a state."""
    from rkd.plugins.extensions.awp import Awp
    from rkd.plugins.extensions.ema import Ema
    from rkd.plugins.schedulers.anl import AdaptiveNormalization

    run = tiny_run(
        loss or Adversarial(), attack=OneStep("train"), epochs=2, lr=0.2, lr_schedule=Ramp(1, 0.1), batch_size=6,
        schedulers={"anl": AdaptiveNormalization(0.3)}, conversion=AuxiliaryBatchNorm(), folder=folder,
        extensions={"ema": Ema(0.5), "awp": Awp(), "stop": stop}, on_nan=on_nan,
    )  # fmt: skip
    run.student.net.arch.head = torch.nn.Sequential(torch.nn.Dropout(0.3), run.student.net.arch.head)
    run.optimizer = torch.optim.AdamW(run.student.net.parameters(), 0.2)
    run.validation = validation(run)
    return run


def ending(run: Run) -> tuple[str, list[dict[str, Any]], Any]:
    """Everything that a training leaves, to be compared bit for bit."""
    state = copied(run.state())  # with lists for tuples, as files know no others
    state.pop("seconds")
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in state.pop("history")]
    lines = run.folder.history() if run.folder else []
    with torch.no_grad():
        torch.set_printoptions(precision=20, threshold=10**6)
        try:
            return str(state), history, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        finally:
            torch.set_printoptions(profile="default")


def test_a_training_stopped_anywhere_goes_on_exactly(tmp_path) -> None:
    """After each step and in each validation, also when it is stopped again and again."""
    whole = resumable(RunFolder.create(tmp_path / "whole"), counter := StopAt(0))
    fit(whole)
    assert counter.asked > 2 * 3 + 2, "after every step, and in the validations"
    for at in range(1, counter.asked + 1):
        folder = RunFolder.create(tmp_path / f"stopped-{at}")
        with pytest.raises(Stopped, match=r"stopped after (step \d/3 of )?epoch \d"):
            fit(resumable(folder, StopAt(at)))
        rest = resumable(folder, StopAt(0))
        rest.load_state(folder.load()[0])
        folder.rewrite_history(rest.history)
        fit(rest)
        assert ending(rest) == ending(whole), at
        kept = [torch.cat([p.flatten() for p in chosen_net(run).parameters()]) for run in (rest, whole)]
        assert torch.equal(*kept)
    folder = RunFolder.create(tmp_path / "often")
    for _ in range(100):
        run = resumable(folder, StopAt(6))  # a validation asks four times, and is begun anew
        if folder.saved():
            run.load_state(folder.load()[0])
            folder.rewrite_history(run.history)
        try:
            fit(run)
        except Stopped:
            continue
        break
    assert ending(run) == ending(whole)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    run = tiny_run(Clean())
    state = run.state() | {"data": "other"}
    with pytest.raises(DataError, match=r"data set 'tiny' has changed.*'other' then, 'tiny' now"):
        run.load_state(state)


def test_checkpoints_by_epochs_and_by_minutes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minutes are the monotonic clock's: the wall clock may jump as it likes."""
    now = [1000.0]
    monkeypatch.setattr("rkd.training.checkpoints.time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: -now[0])
    places = []

    class Clock:
        @hookimpl
        def rkd_after_update(self, run):
            now[0] += 40  # two steps an epoch, 80 s

        @hookimpl
        def rkd_stop(self, run):
            places.append(run.folder.place())

    folder = RunFolder.create(tmp_path / "run")
    run = tiny_run(Clean(), epochs=5, folder=folder, saving=Saving(epochs=3, minutes=2), extensions={"c": Clock()})
    fit(run)
    # Every 120 s, and with epoch 3.
    expected = [None, None, (1, 1, 2), (1, 1, 2), (1, 1, 2), (2, 2, 2), (3, 0, 2), (3, 0, 2), (4, 1, 2), (4, 1, 2)]
    assert places == expected
    assert folder.place() == (5, 0, 2)
    assert run.history[-1]["seconds"] == 400


# The dry step


def test_the_dry_step_leaves_everything_as_it_was() -> None:
    setter = Setter({"weight.a": 1.0})
    run = tiny_run(Adversarial(), attack=OneStep("train"), schedulers={"s": setter}, conversion=AuxiliaryBatchNorm())
    state = copy.deepcopy(run.state())
    with untouched(run.student.net):
        card = dry_step(run)
    assert setter.log == []
    assert run.knobs == {}
    assert run.terms == {}
    assert str(run.state()) == str(state)
    assert (card.samples, card.counts["student"].forwards) == (2, 3)


def test_the_dry_step_changes_no_training() -> None:
    ends = []
    for dry in (False, True):
        run = tiny_run(Adversarial(), attack=OneStep())
        if dry:
            dry_step(run)
        fit(run)
        ends.append(weights(run))
    assert torch.equal(*ends)


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

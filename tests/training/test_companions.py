"""Nets beside the student: they learn or follow, are saved and restored, and are refused where they cannot be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.errors import ConfigError, Refused, TrainingFailed
from rkd.core.run import Run
from rkd.core.step import Step
from rkd.core.trainer import fit, train_step
from rkd.core.types import Companion
from rkd.nets.student import NetStudent
from rkd.plugins.extensions.awp import Awp
from rkd.registry.catalog import load_catalog
from rkd.storage.serialize import load_state, save_state
from rkd.testing import LinearNet, OneStep, StubTeacher, check_loss, tiny_dataset, tiny_net, tiny_run, tiny_step
from rkd.testing.tiny import tiny_batch, tiny_companions
from rkd.training.accumulation import Accumulation
from rkd.training.companions import Follower, check_companions, learning
from rkd.training.divergence import DivergenceMonitor
from rkd.training.dry_run import dry_step
from rkd.workflow.build import build
from rkd.workflow.resolve import resolve


@dataclass
class Three:
    """A peer that learns, an average that follows, and the robust teacher that goes on learning."""

    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd"}
    companions: ClassVar = {
        "peer": Companion(lr=0.5),
        "average": Companion(follows=0.75),
        "goes-on": Companion(of="robust"),
    }

    def __call__(self, step: Step) -> dict[str, Tensor]:
        peer, goes_on = step.companion("peer", "adv"), step.companion("goes-on", "adv")
        adv = step.student("adv")
        return {
            "adv": ops.kl(adv, peer) + ops.kl(adv, step.companion("average")),
            "peer": ops.cross_entropy(peer, step.y),
            "goes-on": ops.cross_entropy(goes_on, step.y) + ops.kl(adv, goes_on),
        }


def a_run(loss: Any = None, net: Any = None, **settings: Any) -> Run:
    student = NetStudent(tiny_net(net)) if net else None
    return tiny_run(
        loss or Three(), attack=OneStep(), student=student, data=tiny_dataset(33), batch_size=10, **settings
    )


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def all_weights(run: Run) -> dict[str, Tensor]:
    return {f"{name}.{key}": v.clone() for name, net in run.nets.items() for key, v in net.state_dict().items()}


def test_the_contract_is_kept() -> None:
    check_loss(Three())


def test_each_learns_or_follows() -> None:
    run = a_run()
    teacher = weights(run.teachers["robust"].net)
    before = {name: weights(net) for name, net in run.nets.items()}
    assert torch.equal(before["average"], before["student"]) and torch.equal(before["goes-on"], teacher)
    expected = before["average"].double()
    batches = list(run.loader.batches(0))
    run.hooks.hook.rkd_run_start(run=run)
    for batch in batches:
        train_step(run, batch)
        run.hooks.hook.rkd_after_update(run=run)
        expected = 0.75 * expected + 0.25 * weights(run.student.net).double()
    torch.testing.assert_close(weights(run.companions["average"].net).double(), expected, rtol=1e-6, atol=1e-6)
    for name in ("peer", "goes-on", "student"):
        assert not torch.equal(weights(run.nets[name]), before[name]), name
    assert torch.equal(weights(run.teachers["robust"].net), teacher)
    assert list(learning(run.companions)) == ["peer", "goes-on"]


def test_its_learning_rate_is_a_share_of_the_students() -> None:
    moved = []
    for share in (0.5, 1.0):
        run = a_run(net=LinearNet)
        for group in run.optimizer.param_groups[1:]:
            group["share"] = share
        before = weights(run.companions["peer"].net)
        train_step(run, next(run.loader.batches(0)))
        moved.append(weights(run.companions["peer"].net) - before)
    torch.testing.assert_close(2 * moved[0], moved[1], rtol=1e-3, atol=1e-6)


def test_a_training_goes_on_exactly(tmp_path: Path) -> None:
    whole = a_run(epochs=3)
    fit(whole)
    half = a_run(epochs=3)

    class Enough(Exception):
        pass

    half.checkpoints.after_epoch = lambda run: (_ for _ in ()).throw(Enough)  # type: ignore[method-assign]
    with pytest.raises(Enough):
        fit(half)
    save_state(tmp_path / "state.safetensors", half.state_dict())
    other = a_run(epochs=3)
    other.load_state_dict(load_state(tmp_path / "state.safetensors"))
    fit(other)
    for name, value in all_weights(whole).items():
        assert torch.equal(all_weights(other)[name], value), name


def test_in_parts_it_learns_the_same() -> None:
    ends = []
    for parts in (1, 3):
        run = a_run(net=LinearNet, backward=Accumulation(parts), epochs=2)
        fit(run)
        ends.append(all_weights(run))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_its_statistics_move_once_under_awp_and_its_weights_are_not_perturbed() -> None:
    plain, perturbed = a_run(), a_run(extensions={"awp": Awp(0.0)})
    batch = next(plain.loader.batches(0))
    for run in (plain, perturbed):
        run.hooks.hook.rkd_run_start(run=run)
        train_step(run, batch)
    for name, value in all_weights(plain).items():
        torch.testing.assert_close(all_weights(perturbed)[name], value, msg=name)


def test_one_that_diverges_is_named_and_a_skipped_step_undone() -> None:
    run = a_run(monitor=DivergenceMonitor())
    for weight in run.companions["peer"].net.parameters():
        weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingFailed, match="of the companion peer"):
        fit(run)
    run = a_run(monitor=DivergenceMonitor("skip"))
    for weight in run.companions["peer"].net.parameters():
        weight.register_hook(lambda gradient: gradient * float("nan"))
    before = all_weights(run)
    batch = next(run.loader.batches(0))
    run.monitor.before(run)
    train_step(run, batch)
    assert not run.monitor.after(run, batch)
    assert all(torch.equal(value, before[name]) for name, value in all_weights(run).items())


def test_answers_by_how_they_are_asked_for() -> None:
    loss = Three()
    student, teachers = NetStudent(tiny_net()), {"robust": StubTeacher("robust")}
    companions = tiny_companions(loss, student, teachers)
    peer = companions["peer"].net
    step = tiny_step(teachers=teachers, companions=companions)
    kept = copy.deepcopy(peer.state_dict())
    soft = step.teacher("peer")
    assert not soft.requires_grad and torch.equal(soft, peer.eval()(step.image()))
    asked = tiny_batch(seed=3).x.requires_grad_()
    (gradient,) = torch.autograd.grad(step.ask("peer", asked).sum(), asked)
    assert gradient.any() and all(p.requires_grad and p.grad is None for p in peer.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in peer.state_dict().items())
    assert step.companion("peer").requires_grad and not step.companion("average").requires_grad
    assert step.companion("peer") is step.companion("peer")
    with pytest.raises(Refused, match="no companion 'pear'"):
        step.companion("pear")


def test_while_an_attack_runs_it_answers_without_gradient() -> None:
    seen = []

    def objective(step: Step, probe: Any, x: Tensor) -> Tensor:
        seen.append(step.companion("peer"))
        return ops.kl(probe(x), seen[-1])

    run = a_run(objective=objective)
    train_step(run, next(run.loader.batches(0)))
    assert seen and not any(answer.requires_grad for answer in seen)


@pytest.mark.parametrize(
    ("companions", "words"),
    [
        ({"student": Companion()}, "cannot be called 'student'"),
        ({"robust": Companion()}, "cannot be called 'robust'"),
        ({"x": Companion(of="clean")}, "starts as the teacher 'clean' .teachers given: robust"),
        ({"x": Companion(of="robust", follows=0.9)}, "both follow the student and start"),
    ],
)
def test_declarations_that_cannot_be_meant(companions: Mapping[str, Companion], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_companions(companions, {"robust": None})


def test_one_that_is_never_asked_is_refused_before_the_training() -> None:
    class Idle(Three):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"adv": ops.kl(step.student("adv"), step.companion("peer", "adv"))}

    with pytest.raises(Refused, match="the companion 'average' and the companion 'goes-on' would never be used"):
        dry_step(a_run(Idle()))


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from rkd.plugin import Companion, hookimpl, ops

@dataclass
class Pair:
    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "fgsm"}
    companions: ClassVar = {"peer": Companion(), "average": Companion(follows=0.9)}
    def __call__(self, step):
        peer, adv = step.companion("peer", "adv"), step.student("adv")
        return {"adv": ops.kl(adv, peer) + ops.kl(adv, step.teacher("average")),
                "peer": ops.cross_entropy(peer, step.y)}

@hookimpl
def rkd_losses():
    return {"pair": Pair}
"""


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pair.py").write_text(PLUGIN)
    return {"loss": {"name": "pair"}, "student": {"model": "small-cnn", "width": 4}, "data": {"name": "digits"}}


def test_a_run_builds_them_as_its_settings_say(table: dict[str, Any], tmp_path: Path) -> None:
    catalog = load_catalog([tmp_path / "pair.py"])
    plan = resolve(table, catalog)
    assert plan.config.companions["peer"].model == "small-cnn" and "average" not in plan.config.companions
    run = build(plan, catalog, {})
    peer, average = run.companions["peer"], run.companions["average"]
    assert weights(peer.net).shape == weights(run.student.net).shape
    assert not torch.equal(weights(peer.net), weights(run.student.net))
    assert isinstance(average, Follower) and torch.equal(weights(average.net), weights(run.student.net))
    aux = resolve({**table, "student": {**table["student"], "conversions": {"aux-bn": {}}}}, catalog)
    assert not aux.config.companions["peer"].conversions, "the peer of this loss learns attacked images alone"
    other = resolve({**table, "companions": {"peer": {"model": "resnet8"}}}, catalog)
    assert other.config.companions["peer"].model == "resnet8"
    assert weights(build(other, catalog, {}).companions["peer"].net).shape != weights(run.student.net).shape
    again = resolve(plan.config.model_dump(by_alias=True, exclude_none=True), catalog)
    assert again.config.text() == plan.config.text(), "what config.toml says is the whole truth"
    with pytest.raises(ConfigError, match=r"companions\.average: there is no architecture to choose: the student's"):
        resolve({**table, "companions": {"average": {"model": "resnet8"}}}, catalog)
    with pytest.raises(ConfigError, match="there is no model 'resnet9'"):
        resolve({**table, "companions": {"peer": {"model": "resnet9"}}}, catalog)


def test_learning_rates_of_a_run(table: dict[str, Any], tmp_path: Path) -> None:
    catalog = load_catalog([tmp_path / "pair.py"])
    run = build(resolve(table, catalog), catalog, {})
    assert [group.get("share") for group in run.optimizer.param_groups] == [None, 1.0]
    assert run.optimizer.param_groups[1]["momentum"] == run.optimizer.param_groups[0]["momentum"] == 0.9
